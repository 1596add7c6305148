from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import Normalize

from robench.errors import ModelError, UsageError
from robench.models.architectures.resnet import DigitsResNet
from robench.models.loading import wrap_module
from robench.models.wrapper import RobenchModel, buffer_fingerprint, unwrapped
from robench.records import ForwardSpec, InputSpec, ModelSummary
from robench.threat_models import ThreatModel

SUMMARY = ModelSummary(
    id="digits/Linf-0.2/probe",
    name="probe",
    dataset="digits",
    defense="standard",
    architecture="probe",
    parameters=1,
    threat_model=ThreatModel.of("Linf", "0.2"),
    weights_sha256="0" * 64,
    fingerprint="1" * 64,
)


def wrap(network: nn.Module, num_classes: int = 3, **specs: Any) -> RobenchModel:
    return RobenchModel(network, num_classes=num_classes, summary=SUMMARY, **specs)


class Returns(nn.Module):
    """Channel means, then whatever ``shape`` makes of them."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor, **arguments: Any) -> Any:
        return self.shape(inputs.mean(dim=(2, 3)), **arguments)


class TrainsItself(nn.Module):
    """The trap of some published networks: ``forward`` switches to training mode by default."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, inputs: Tensor, _eval: bool = False) -> tuple[Tensor, Tensor]:
        self.train(not _eval)
        maps = self.bn(inputs)
        return maps, maps.mean(dim=(2, 3))


@settings(deadline=None)
@given(
    low=st.floats(-4, 4),
    span=st.floats(0.5, 300),
    mean=st.none() | st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    std=st.none() | st.lists(st.floats(0.1, 2), min_size=1, max_size=1),
    bgr=st.booleans(),
)
def test_prepare_is_the_documented_formula(
    low: float, span: float, mean: list[float] | None, std: list[float] | None, bgr: bool
) -> None:
    spec = InputSpec(
        low=low, high=low + span, mean=mean, std=std, channel_order="BGR" if bgr else "RGB"
    )
    inputs = torch.linspace(0, 1, 2 * 3 * 4, dtype=torch.float64).view(2, 3, 2, 2)
    expected = inputs[:, [2, 1, 0]] if bgr else inputs
    expected = spec.low + expected * (spec.high - spec.low)
    expected = expected - torch.tensor(mean or [0.0], dtype=torch.float64).view(1, -1, 1, 1)
    expected = expected / torch.tensor(std or [1.0], dtype=torch.float64).view(1, -1, 1, 1)
    prepared = wrap(Returns(lambda m: m), input_spec=spec).prepare(inputs)
    assert prepared.dtype == torch.float64
    # The wrapper holds mean and std in float32.
    torch.testing.assert_close(prepared, expected, rtol=1e-5, atol=1e-5)


def test_identity_adds_no_operation() -> None:
    inputs = torch.rand(2, 3, 4, 4)
    spec = InputSpec(mean=(0.0,), std=(1.0, 1.0, 1.0))
    assert wrap(Returns(lambda m: m), input_spec=spec).prepare(inputs) is inputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    model = wrap(Returns(lambda m: m), input_spec=InputSpec(mean=(0.5,), std=(0.25,)))
    assert model(torch.rand(2, 3, 4, 4).to(dtype)).dtype == dtype


Pair = namedtuple("Pair", ["logits", "rest"])


class Bag:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    "shape, path",
    [
        (lambda m: m, ()),
        (lambda m: (m + 1, m), (1,)),
        (lambda m: (m + 1, [m + 2, m]), (1, -1)),
        (lambda m: {"logits": m}, ("logits",)),
        (lambda m: Bag(m), ("logits",)),
        (lambda m: Pair(m, 0), (0,)),
    ],
)
def test_logits_are_found_at_their_path(shape: Any, path: tuple[int | str, ...]) -> None:
    inputs = torch.rand(2, 3, 4, 4)
    logits = wrap(Returns(shape), forward_spec=ForwardSpec(output=path))(inputs)
    torch.testing.assert_close(logits, inputs.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "shape, path, words",
    [
        (lambda m: (m, m), (), "returns a tuple of 2"),
        (lambda m: (m, m), (5,), "nothing at output path"),
        (lambda m: {"out": m}, ("logits",), "a dict with 'out'"),
        (lambda m: m, ("logits",), "nothing at output path"),
        (lambda m: m[:, :2], (), r"expected logits of shape \(2, 3\), got \(2, 2\)"),
        (lambda m: m[0], (), r"got \(3,\)"),
        (lambda m: None, (), "a NoneType where logits"),
        (lambda m: torch.complex(m, m), (), r"complex numbers \(torch.complex64\)"),
    ],
)
def test_wrong_outputs_are_named(shape: Any, path: Any, words: str) -> None:
    model = wrap(Returns(shape), forward_spec=ForwardSpec(output=path))
    with pytest.raises(ModelError, match=words) as raised:
        model(torch.rand(2, 3, 4, 4))
    assert raised.value.where == SUMMARY.id


class Halves(nn.Module):
    """Halves its very input, as a normalisation in place does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mul_(0.5)


@pytest.mark.parametrize(
    ("first", "slope"),
    [
        (nn.ReLU(inplace=True), 1.0),
        (nn.Hardtanh(0.0, 1.0, inplace=True), 1.0),
        (Normalize([0.25], [0.5], inplace=True), 2.0),
        (Halves(), 0.5),
    ],
    ids=["relu", "hardtanh", "torchvision", "mul_"],
)
def test_a_network_may_work_in_place_on_its_inputs(first: nn.Module, slope: float) -> None:
    model = wrap(nn.Sequential(first, Returns(lambda m: m)))
    inputs = torch.rand(2, 3, 4, 4) * 0.5 + 0.25
    kept = inputs.clone()
    with torch.no_grad():
        logits = model(inputs)
    assert torch.equal(inputs, kept)
    leaf = inputs.clone().requires_grad_()
    again = model(leaf)
    assert torch.equal(again, logits)
    (gradient,) = torch.autograd.grad(again.sum(), leaf)
    torch.testing.assert_close(gradient, torch.full_like(inputs, slope / 16))
    assert torch.equal(leaf, kept)


def test_torch_s_default_type_is_the_callers() -> None:
    def doubles(means: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return means + torch.zeros(3)

    assert wrap(Returns(doubles))(torch.rand(2, 3, 4, 4)).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_with_output_shares_parameters_and_swaps_arguments() -> None:
    network = Returns(lambda m, both=None: m if both is None else (m, [m * 2, m * 3]))
    network.register_parameter("weight", nn.Parameter(torch.ones(1)))
    spec = ForwardSpec(outputs={"aux": (1, 1)}, outputs_arguments={"both": True})
    model = wrap(network, forward_spec=spec, input_spec=InputSpec(mean=(0.5,)))
    aux = model.with_output("aux")
    inputs = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(aux(inputs), 3 * model(inputs))
    assert aux.network is model.network
    assert (model.output_name, aux.output_name) == (None, "aux")
    assert next(aux.parameters()) is next(model.parameters())
    with pytest.raises(UsageError, match="Did you mean 'aux'"):
        model.with_output("auxx")
    with pytest.raises(UsageError, match="none but the final logits"):
        wrap(Returns(lambda m: m)).with_output("aux")


def test_is_frozen_and_stays_in_evaluation_mode() -> None:
    model = wrap(DigitsResNet(num_classes=3, in_channels=3))
    model.train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    inputs = torch.rand(2, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(inputs).sum(), inputs)
    assert gradient.abs().sum() > 0


def test_the_argument_that_disarms_a_self_training_network() -> None:
    armed = wrap(TrainsItself(), forward_spec=ForwardSpec(output=(1,)))
    before = buffer_fingerprint(armed)
    armed(torch.rand(4, 3, 5, 5))
    assert buffer_fingerprint(armed) != before

    spec = ForwardSpec(output=(1,), arguments={"_eval": True})
    disarmed = wrap(TrainsItself(), forward_spec=spec)
    before = buffer_fingerprint(disarmed)
    disarmed(torch.rand(4, 3, 5, 5))
    assert buffer_fingerprint(disarmed) == before


def test_state_dict_is_the_networks_own() -> None:
    model = wrap(DigitsResNet(3, 3), input_spec=InputSpec(mean=(0.5,), std=(0.5,)))
    stripped = {name.removeprefix("network.") for name in model.state_dict()}
    assert stripped == set(DigitsResNet(3, 3).state_dict())


def test_survives_copying_moving_and_compiling() -> None:
    spec = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model = wrap(DigitsResNet(3, 3, width=4), input_spec=spec)
    inputs = torch.rand(2, 3, 8, 8)
    logits = model(inputs)
    clone = copy.deepcopy(model)
    torch.testing.assert_close(clone(inputs), logits, rtol=0, atol=0)
    assert clone.summary == model.summary
    moved = clone.to(torch.float64)
    torch.testing.assert_close(moved(inputs.double()).float(), logits, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), logits)
    meta = copy.deepcopy(model).to("meta")
    assert meta(inputs.to("meta")).shape == (2, 3)


def test_fingerprint_sees_every_bit_and_every_buffer() -> None:
    network = DigitsResNet(width=4)
    before = buffer_fingerprint(network)
    assert buffer_fingerprint(copy.deepcopy(network)) == before
    network.bn1.num_batches_tracked += 1
    after = buffer_fingerprint(network)
    assert after != before
    network.register_buffer("hidden", torch.zeros(1), persistent=False)
    assert buffer_fingerprint(network) != after


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same_and_the_fingerprint_follows() -> None:
    spec = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model = wrap(DigitsResNet(3, 3, width=4), input_spec=spec)
    inputs = torch.rand(2, 3, 8, 8)
    logits, before = model(inputs), buffer_fingerprint(model)
    moved = model.to("cuda")
    torch.testing.assert_close(moved(inputs.cuda()).cpu(), logits, rtol=1e-3, atol=1e-4)
    assert buffer_fingerprint(moved) == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["real", "data", "T", "\x1b[2J", "0"])
def test_a_tensor_has_no_outputs_by_name(name: str) -> None:
    """torch takes a text for a sequence of rows, and every tensor has attributes."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model = wrap_module(module, num_classes=3, forward={"output": name})
    with pytest.raises(ModelError, match="nothing at output path"):
        model(torch.rand(2, 1, 2, 2))


class Negative(nn.DataParallel):
    """A wrapper that computes something else."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return super().forward(1 - inputs[0])


def test_a_wrapper_that_computes_something_else_stays() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    inputs = torch.rand(3, 1, 2, 2)
    hooked = nn.DataParallel(network)
    hooked.register_forward_pre_hook(lambda module, given: (given[0] * 0,))
    expected = (network(1 - inputs), network(inputs * 0))
    about = {"num_classes": 2, "input": {"channels": 1}, "threat_model": "Linf-0.1"}
    for other, logits in zip((Negative(network), hooked), expected, strict=True):
        torch.testing.assert_close(wrap_module(other, **about)(inputs), logits)
    assert unwrapped(nn.DataParallel(network)) is network
    compiled = torch.compile(network, backend="eager")
    compiled.register_forward_hook(lambda module, given, output: output.flip(1))
    with pytest.raises(UsageError, match="loses the hooks"):
        wrap_module(compiled, **about)
    shared = wrap_module(compiled, share=True, **about)
    torch.testing.assert_close(shared(inputs), network(inputs).flip(1))
