"""Grad-CAM against exact numbers and Captum, and what it leaves behind."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F

from robench.attention.feature_maps import find_spatial_layer
from robench.attention.grad_cam import grad_cam
from robench.errors import ModelError, UnknownNameError, UsageError


class Plain(nn.Module):
    """Convolutions and in-place activations, as VGG has them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(8 * 4 * 6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs).flatten(1))


class Residual(nn.Module):
    """A residual sum that is changed in place, and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        stem = self.stem(inputs)
        total = self.block(stem)
        total += stem
        return self.fc(self.pool(F.relu(total, inplace=True)).flatten(1))


class Branches(nn.Module):
    """Two parallel convolutions, strides, grouped and dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(3, 4, 5, stride=2, padding=4, dilation=2)
        self.mix = nn.Conv2d(8, 8, 1, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        both = torch.cat([self.first(inputs), self.second(inputs)], dim=1)
        return self.fc(F.silu(self.norm(self.mix(both))).mean(dim=(2, 3)))


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def batch(n: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 12, generator=generator), torch.arange(n) % 5


def captum_maps(model: nn.Module, layer: str, inputs: Tensor, targets: Tensor) -> Tensor:
    maps = LayerGradCam(model, model.get_submodule(layer)).attribute(
        inputs, targets, relu_attributions=True
    )
    return maps[:, 0].detach()


NETWORKS = [
    (Plain, "features.1"),  # overwritten by the activation that follows
    (Plain, "features.3"),
    (Plain, "features.4"),
    (Plain, "features.5"),
    (Residual, "stem"),
    (Branches, "mix"),
    (Branches, "norm"),
]


# --- numbers ---------------------------------------------------------------------------------


def test_hand_computed_case() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(1, 2, 1, bias=False)
            self.features.weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.features(inputs)
            # Class 0 takes channel 0's first cell 8 times; class 1 half of channel 1 everywhere.
            return torch.stack([8 * maps[:, 0, 0, 0], maps[:, 1].sum(dim=(1, 2)) / 2], dim=1)

    inputs = torch.tensor([[[[1.0, 0.5], [0.0, 0.25]]]])
    # alpha = mean of (8, 0, 0, 0) = 2 on channel 0, whose map is the input itself.
    first = grad_cam(Bilinear(), inputs, torch.tensor([0]), layer="features")
    assert torch.equal(first, torch.tensor([[[2.0, 1.0], [0.0, 0.5]]]))
    # alpha = 1/2 on channel 1, whose map is -2 times the input: the ReLU leaves nothing.
    assert torch.equal(
        grad_cam(Bilinear(), inputs, torch.tensor([1]), layer="features"), torch.zeros(1, 2, 2)
    )


@pytest.mark.parametrize("make, layer", NETWORKS)
def test_equals_captum(make: Callable[[], nn.Module], layer: str) -> None:
    model = built(make)
    inputs, targets = batch()
    maps = grad_cam(model, inputs, targets, layer=layer)
    # Captum reads a layer's output after later in-place changes; a twin without them shows it
    # what the layer put out.
    twin = built(make)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = captum_maps(twin, layer, inputs, targets)
    assert expected.max() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-7)


def test_maps_do_not_depend_on_the_batch() -> None:
    model = built(Plain)
    inputs, targets = batch(6)
    together = grad_cam(model, inputs, targets, layer="features.3")
    for i in range(6):
        alone = grad_cam(model, inputs[i : i + 1], targets[i : i + 1], layer="features.3")
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-7)


def test_maps_cost_one_forward_pass_and_have_no_graph() -> None:
    model = built(Plain)
    inputs, targets = batch()
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    maps = grad_cam(model, inputs, targets, layer="features.3")
    assert len(passes) == 1
    assert not maps.requires_grad


# --- layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, expected", [(Plain, "features"), (Residual, "block"), (Branches, "norm")]
)
def test_last_spatial_layer_is_found(make: Callable[[], nn.Module], expected: str) -> None:
    model = built(make)
    inputs, targets = batch()
    assert find_spatial_layer(model, inputs) == expected
    found = grad_cam(model, inputs, targets)
    assert torch.equal(found, grad_cam(model, inputs, targets, layer=expected))


def test_wrapped_networks_go_by_their_own_names() -> None:
    class Wrapper(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(2 * inputs - 1)

    network = built(Plain)
    model = Wrapper(network)
    inputs, targets = batch()
    assert find_spatial_layer(model, inputs) == "features"
    expected = grad_cam(network, 2 * inputs - 1, targets, layer="features.3")
    for name in ("features.3", "network.features.3"):
        torch.testing.assert_close(grad_cam(model, inputs, targets, layer=name), expected)


def test_unknown_layer_lists_near_misses() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layer 'feature\.3'.*features\.3"):
        grad_cam(built(Plain), *batch(), layer="feature.3")


@pytest.mark.parametrize("layer", ["", "head.nothing"])
def test_names_that_lead_nowhere_are_unknown(layer: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown layer"):
        grad_cam(built(Plain), *batch(), layer=layer)


def test_network_without_spatial_layers_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 5))
    with pytest.raises(ModelError, match="no layer on the way to the logits puts out a spatial"):
        grad_cam(model, *batch())


def test_layer_that_is_not_spatial_is_refused() -> None:
    with pytest.raises(ModelError, match=r"head: .*did not put out a feature map"):
        grad_cam(built(Plain), *batch(), layer="head")


def test_layer_off_the_way_to_the_logits_is_refused() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aside = Plain(), nn.Conv2d(3, 2, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            self.aside(inputs)
            return self.body(inputs)

    with pytest.raises(ModelError, match=r"aside: the logits do not depend"):
        grad_cam(built(Aside), *batch(), layer="aside")


def test_last_call_of_a_layer_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc(torch.tanh(self.conv(torch.tanh(self.conv(inputs)))).mean(dim=(2, 3)))

    model = built(Twice)
    inputs, targets = batch()
    features = model.conv(torch.tanh(model.conv(inputs))).detach().requires_grad_()
    scores = model.fc(torch.tanh(features).mean(dim=(2, 3))).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(scores, features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = (weights * features).sum(dim=1).relu().detach()
    torch.testing.assert_close(grad_cam(model, inputs, targets, layer="conv"), expected)


Pair = namedtuple("Pair", ["vector", "features"])


@pytest.mark.parametrize(
    "pack, unpack",
    [
        (lambda v, m: (v, m), lambda out: out),
        (lambda v, m: [v, m], lambda out: out),
        (lambda v, m: Pair(v, m), lambda out: (out.vector, out.features)),
        (lambda v, m: {"v": v, "m": m}, lambda out: (out["v"], out["m"])),
    ],
    ids=["tuple", "list", "named tuple", "dict"],
)
def test_layers_may_return_several_things(
    pack: Callable[..., object], unpack: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, inputs: Tensor) -> object:
            maps = self.conv(inputs)
            return pack(maps.mean(dim=(2, 3)), maps)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.fc = Stage(), nn.Linear(8, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            vector, maps = unpack(self.stage(inputs))
            return self.fc(torch.cat([vector, maps.amax(dim=(2, 3))], dim=1))

    model = built(Net)
    inputs, targets = batch()
    features = model.stage.conv(inputs).detach().requires_grad_()
    mean = features.detach().mean(dim=(2, 3))  # the vector is another output, not the map's
    scores = model.fc(torch.cat([mean, features.amax(dim=(2, 3))], dim=1))
    (gradient,) = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), features)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu().detach()
    maps = grad_cam(model, inputs, targets, layer="stage")
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-7)


def test_channels_last_layers_give_maps_of_the_image_not_of_channels() -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = (
                nn.Conv2d(3, 16, 2, 2),
                nn.LayerNorm(16),
                nn.Linear(16, 5),
            )

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc(self.norm(self.conv(inputs).permute(0, 2, 3, 1)).square().mean((1, 2)))

    model = built(ChannelsLast)
    inputs, targets = batch()
    assert find_spatial_layer(model, inputs) == "norm"
    features = model.norm(model.conv(inputs).permute(0, 2, 3, 1)).detach().requires_grad_()
    scores = model.fc(features.square().mean((1, 2))).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(scores, features)
    expected = (gradient.mean(dim=(1, 2), keepdim=True) * features).sum(dim=3).relu().detach()
    maps = grad_cam(model, inputs, targets)
    assert maps.shape == (6, 4, 6)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-7)


# --- what is left behind ---------------------------------------------------------------------


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Switching(Plain):
    """Puts itself in training mode whenever it runs, as some released code does."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.train()
        return super().forward(inputs)


@pytest.mark.parametrize("make", [Plain, Switching])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_model_is_left_as_it_was(
    make: Callable[[], nn.Module], training: bool, create_graph: bool
) -> None:
    model = built(make).train(training)
    model.features[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    identities = {name: id(buffer) for name, buffer in model.named_buffers()}
    inputs, targets = batch()
    grad_cam(model, inputs, targets, create_graph=create_graph)
    assert hooks_of(model) == 0
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == identities
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.features[0].parameters()] == [False, False]
    assert inputs.grad is None
    assert not inputs.requires_grad


def test_hooks_are_gone_after_an_error() -> None:
    class Failing(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            super().forward(inputs)
            raise RuntimeError("out of order")

    model = built(Failing).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in (None, "features.0"):
        with pytest.raises(RuntimeError, match="out of order"):
            grad_cam(model, *batch(), layer=layer)
        assert hooks_of(model) == 0
        assert model.training
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_whatever_the_callers_gradient_mode(context: Callable[[], object]) -> None:
    model = built(Plain).requires_grad_(False)
    expected = grad_cam(model, *batch())
    with context():  # type: ignore[attr-defined]
        enabled = torch.is_grad_enabled()
        maps = grad_cam(model, *batch())
        assert torch.is_grad_enabled() == enabled
    assert torch.equal(maps, expected)
    assert maps.max() > 0


# --- second order ----------------------------------------------------------------------------


def test_losses_on_maps_reach_parameters_and_inputs() -> None:
    model = built(Branches).double()
    inputs, targets = batch(2)
    inputs = inputs.double().requires_grad_()

    def loss(values: Tensor) -> Tensor:
        return grad_cam(model, values, targets[:2], layer="mix", create_graph=True).square().sum()

    loss(inputs).backward()
    assert inputs.grad is not None
    for name in ("first", "mix", "norm", "fc"):
        weight = model.get_submodule(name).weight
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
        # A directional finite difference checks that the gradient is the right one.
        direction = torch.randn_like(weight)
        step = 1e-5
        with torch.no_grad():
            weight += step * direction
            above = loss(inputs.detach())
            weight -= 2 * step * direction
            below = loss(inputs.detach())
            weight += step * direction
        slope = ((above - below) / (2 * step)).item()
        assert (weight.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_second_order_works_in_training_mode() -> None:
    model = built(Plain).train()
    inputs, targets = batch()
    maps = grad_cam(model, inputs, targets, layer="features.3", create_graph=True)
    (F.cross_entropy(model(inputs), targets) + maps.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- hostile ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets, message",
    [
        (torch.tensor([0, 1, 2, 3, 4, 5]), "targets from 0 to 5"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), "targets from -1 to 4"),
        (torch.zeros(5, dtype=torch.int64), "one class number for each of the 6 inputs"),
        (torch.zeros(6), "one class number"),
    ],
)
def test_targets_that_make_no_sense_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grad_cam(built(Plain), batch()[0], targets)


@pytest.mark.parametrize(
    "inputs", [torch.rand(3, 8, 12), torch.zeros(1, 3, 8, 12, dtype=torch.uint8)]
)
def test_inputs_that_are_no_batch_are_refused(inputs: Tensor) -> None:
    with pytest.raises(UsageError, match="floating-point batch"):
        grad_cam(built(Plain), inputs, torch.tensor([0]))


@pytest.mark.parametrize(
    "change, message",
    [(lambda z: (z, z), "returned tuple, not logits"), (lambda z: z[:, 0], "returned shape")],
)
def test_models_without_logits_are_refused(change: Callable[..., object], message: str) -> None:
    class Odd(Plain):
        def forward(self, inputs: Tensor) -> object:
            return change(super().forward(inputs))

    with pytest.raises(ModelError, match=message):
        grad_cam(built(Odd), *batch())


def test_half_precision_maps_are_single() -> None:
    model = built(Branches).to(torch.bfloat16)
    inputs, targets = batch()
    maps = grad_cam(model, inputs.to(torch.bfloat16), targets)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_stay_on_the_inputs_device() -> None:
    model = built(Plain)
    inputs, targets = batch()
    expected = grad_cam(model, inputs, targets, layer="features.3")
    maps = grad_cam(model.cuda(), inputs.cuda(), targets, layer="features.3")
    assert maps.device.type == "cuda"
    torch.testing.assert_close(maps.cpu(), expected, rtol=1e-3, atol=1e-5)


class Lowers(nn.Module):
    """Lowers its very input."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sub_(0.25)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_network_that_works_in_place_on_its_inputs_has_the_plain_ones_maps(
    create_graph: bool,
) -> None:
    torch.manual_seed(0)
    plain, targets = Plain().eval(), torch.tensor([1, 3])
    inputs = torch.rand(2, 3, 8, 12)
    kept = inputs.clone()
    found = grad_cam(nn.Sequential(Lowers(), plain), inputs, targets, create_graph=create_graph)
    assert torch.equal(found, grad_cam(plain, kept - 0.25, targets, layer="features.5"))
    assert torch.equal(inputs, kept)
