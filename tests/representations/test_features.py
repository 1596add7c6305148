"""Penultimate features: what the classifier saw, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robench.errors import ModelError, UnknownNameError, UsageError
from robench.representations import penultimate_features

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

INPUTS = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Reused(nn.Module):
    """An auxiliary head that shares the classifier, then the classifier itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        pooled = self.conv(inputs).mean(dim=(2, 3))
        chosen = self.fc(pooled).argmax(dim=1)
        return self.fc(self.hidden(pooled) * self.fc.weight[chosen])


def built(make: type[nn.Module] = Reused) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def test_features_are_what_the_last_linear_layer_maps_to_the_logits() -> None:
    model = built()
    features, logits = penultimate_features(model, INPUTS)
    assert features.shape == (5, 6)
    assert torch.equal(model.fc(features), logits)
    assert torch.equal(model(INPUTS), logits)


def test_one_pass_gives_both() -> None:
    model = built()
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    penultimate_features(model, INPUTS)
    assert len(passes) == 1


def test_layer_can_be_named_also_inside_a_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs)

    model = built()
    pooled = model.conv(INPUTS).mean(dim=(2, 3))
    for name in ("hidden", "network.hidden"):
        torch.testing.assert_close(
            penultimate_features(Wrapper(model), INPUTS, layer=name)[0], pooled
        )


def test_spatial_inputs_are_averaged_before_later_changes_in_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    features, _ = penultimate_features(model, INPUTS, layer="1")
    torch.testing.assert_close(features, model[0](INPUTS).mean(dim=(2, 3)))
    assert features.min() < 0


def test_a_linear_model_has_its_pixels() -> None:
    class Linear(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.flatten(1))

    # The model is itself the last linear layer; its input is then spatial.
    torch.manual_seed(0)
    features, logits = penultimate_features(Linear(192, 4), INPUTS)
    torch.testing.assert_close(features, INPUTS.mean(dim=(2, 3)))
    assert logits.shape == (5, 4)


@pytest.mark.parametrize(
    "make, width",
    [
        (lambda: torchvision.models.resnet18(num_classes=7), 512),
        (
            lambda: timm.models.vision_transformer.VisionTransformer(
                img_size=32, patch_size=8, depth=1, num_heads=2, embed_dim=16, num_classes=7
            ),
            16,
        ),
        (
            lambda: torchvision.models.VisionTransformer(
                32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=7
            ),
            16,
        ),
    ],
    ids=["resnet18", "timm", "torchvision"],
)
def test_libraries_networks(make: object, width: int) -> None:
    torch.manual_seed(0)
    model = make().eval()  # type: ignore[operator]
    features, logits = penultimate_features(model, torch.rand(2, 3, 32, 32))
    assert features.shape == (2, width)
    assert logits.shape == (2, 7)


def test_gradients_flow_if_the_caller_wants_them() -> None:
    model = built()
    features, _ = penultimate_features(model, INPUTS)
    features.square().sum().backward()
    assert model.conv.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert not penultimate_features(model, INPUTS)[0].requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(penultimate_features(model, INPUTS)[0], features.detach())


def test_nothing_is_left_behind_also_after_an_error() -> None:
    class Failing(Reused):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, inputs: Tensor) -> Tensor:
            super().forward(self.norm(inputs))
            raise RuntimeError("out of order")

    model = built(Failing).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of order"):
        penultimate_features(model, INPUTS)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_network_without_a_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    with pytest.raises(ModelError, match=r"no features were seen.*feature_layer"):
        penultimate_features(model, INPUTS)
    assert penultimate_features(model, INPUTS, layer="0")[0].shape == (5, 3)


def test_tokens_are_no_features() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc(inputs.flatten(2).transpose(1, 2)).mean(dim=1)

    with pytest.raises(ModelError, match=r"shape \(5, 64, 3\)"):
        penultimate_features(built(Tokens), INPUTS)


def test_unknown_layer_lists_near_misses() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'hidden'"):
        penultimate_features(built(), INPUTS, layer="hiden")


def test_inputs_that_are_no_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="floating-point batch"):
        penultimate_features(built(), INPUTS[0])


def test_half_precision_features_are_single() -> None:
    features, _ = penultimate_features(built().to(torch.bfloat16), INPUTS.to(torch.bfloat16))
    assert features.dtype == torch.float32
