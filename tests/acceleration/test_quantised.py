"""Convolutions in 8-bit integers: what they compute, and where they are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.acceleration import model_choice as precisions
from robench.acceleration import quantised, trial
from robench.acceleration.byte_layers import QuantisedConvolution
from robench.acceleration.model_choice import choose_search_model
from robench.acceleration.quantised import build_quantised
from robench.acceleration.search_models import EagerModel
from robench.attacks.losses import margin
from robench.datasets import load_dataset
from robench.models import load_model, wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.threat_models import ThreatModel

THREAT = ThreatModel.of("Linf", "0.2")
needs_bytes = pytest.mark.skipif(
    not quantised._is_supported(torch.device("cpu")), reason="no products of bytes on this CPU"
)


def by_hand(layer: nn.Conv2d, inputs: Tensor, low: float, high: float) -> Tensor:
    """Rounded inputs times rounded weights, in float64."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    # Ties may go either way: the examples have none.
    levels = (inputs.double() / scale + zero + 0.5).floor().clamp(0, 255) - zero
    weight = layer.weight.detach().double()
    steps = weight.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1) / 127
    bias = None if layer.bias is None else layer.bias.detach().double()
    return nn.functional.conv2d(
        levels * scale,
        (weight / steps).round() * steps,
        bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )


@needs_bytes
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"padding": (2, 0), "bias": False},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": 2},
        {"groups": 4, "padding": 1},
    ],
)
@pytest.mark.parametrize("low", [0.0, -0.7, -3.0])
def test_a_layer_multiplies_rounded_inputs_by_rounded_weights(
    options: dict[str, Any], low: float
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, **options).requires_grad_(False)
    inputs = torch.rand(5, 8, 9, 10) * (2.0 - low) + low
    replaced = QuantisedConvolution(layer, low, 2.0)
    for given in (inputs, inputs.contiguous(memory_format=torch.channels_last), 1.5 * inputs):
        expected = by_hand(layer, given, low, 2.0)
        torch.testing.assert_close(replaced(given).double(), expected, atol=1e-4, rtol=1e-4)
    # Inside the range what is rounded away is small beside what comes out.
    error = (replaced(inputs) - layer(inputs)).abs().max()
    assert float(error) < 0.03 * float(layer(inputs).std() * 3)


@needs_bytes
def test_inputs_that_are_all_zero_give_the_bias() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False)
    out = QuantisedConvolution(layer, 0.0, 0.0)(torch.zeros(2, 4, 5, 5))
    torch.testing.assert_close(out, layer.bias.view(1, -1, 1, 1).expand_as(out))


@needs_bytes
@pytest.mark.parametrize("name", ["pgd-at", "mart", "aerp"])
def test_a_network_agrees_with_itself_in_bytes(name: str) -> None:
    model = load_model(f"digits/Linf-0.2/{name}")
    data = load_dataset("digits").subset(200)
    inputs, labels = data.batch(range(200)), data.labels
    form = build_quantised(model, inputs[:64])
    assert form is not None
    assert form.description == "int8 folded channels-last"
    convolutions = [m for m in form.module.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1  # the first
    expected = margin(model(inputs), labels)
    error = (margin(form.logits(inputs), labels) - expected).abs().max()
    assert 0 < float(error) < 0.05 * float(expected.abs().median())
    assert [
        m for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    ]  # the original is as it was


class Unusual(nn.Module):
    """Convolutions that are left alone: the first, a padded one, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.usual = nn.Conv2d(4, 4, 3, padding=1)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.named = nn.Conv2d(4, 4, 3, padding="same")
        self.unused = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.first(inputs).relu()
        maps = self.named(self.mirrored(self.usual(maps).relu()).relu())
        if not torch.is_grad_enabled() and maps.shape[0] < 0:
            maps = self.unused(maps)
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


@needs_bytes
def test_only_plain_convolutions_that_ran_are_replaced() -> None:
    model = wrap_module(Unusual(), num_classes=3, input={"channels": 1}).eval()
    inputs = torch.rand(16, 1, 8, 8)
    form = build_quantised(model, inputs)
    assert form is not None
    assert form.description == "int8 channels-last"
    changed = {n for n, m in form.module.named_modules() if isinstance(m, QuantisedConvolution)}
    assert {name.rpartition(".")[2] for name in changed} == {"usual"}
    assert (form.logits(inputs) - model(inputs)).abs().max() < 0.02


class Residual(nn.Module):
    """Blocks as networks have them, with ReLUs as functions, methods and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.first(inputs)))
        maps = self.relu(self.b(torch.relu(self.a(maps))) + maps)
        inner = nn.functional.relu(self.c(maps))
        maps = (self.shortcut(maps) + self.d(inner)).relu()
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


class Kept(Residual):
    """A shortcut that is needed again, and layers whose outputs go elsewhere too."""

    def forward(self, inputs: Tensor) -> Tensor:
        start = torch.relu(self.norm(self.first(inputs)))
        inner = self.a(start)
        maps = torch.relu(self.b(torch.relu(inner)) + start)
        later = torch.relu(self.d(maps) + self.c(inner) * 0.5)
        logits: Tensor = self.head((later + start).mean(dim=(2, 3)))
        return logits


def _small(kind: type[nn.Module]) -> tuple[RobenchModel, Tensor]:
    torch.manual_seed(3)
    model = wrap_module(kind(), num_classes=3, input={"channels": 1}).eval()
    return model, torch.rand(32, 1, 8, 8)


def _steps(form: EagerModel) -> list[str]:
    """What is computed, in order, beside the first convolution."""
    network: Any = form.module.network
    layers = dict(network.named_modules())
    steps = []
    for node in network.graph.nodes:
        layer = layers.get(str(node.target))
        if isinstance(layer, QuantisedConvolution):
            kind = "bytes" if layer.emitted else "sum" if len(node.args) > 1 else "plain"
            steps.append(f"{str(node.target).rpartition('.')[2]}: {kind}")
        elif node.op in ("call_function", "call_method"):
            steps.append(getattr(node.target, "__name__", node.target))
        elif isinstance(layer, nn.ReLU):
            steps.append("relu")
    return steps


@needs_bytes
def test_layers_pass_bytes_on_and_add_their_shortcuts() -> None:
    model, inputs = _small(Residual)
    form = build_quantised(model, inputs)
    assert form is not None
    expected = "relu, a: bytes, b: sum, c: bytes, d: plain, shortcut: sum, mean"
    assert ", ".join(_steps(form)) == expected


@needs_bytes
def test_what_is_needed_again_is_not_written_on() -> None:
    model, inputs = _small(Kept)
    form = build_quantised(model, inputs)
    assert form is not None
    steps = _steps(form)
    assert "b: sum" not in steps  # its shortcut is read once more
    assert "a: plain" in steps  # read by a ReLU and by another layer
    assert (form.logits(inputs) - model(inputs)).abs().max() < 0.02


@needs_bytes
@pytest.mark.parametrize("kind", [Residual, Kept])
def test_joined_layers_compute_what_they_did_apart(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = _small(kind)
    joined = build_quantised(model, inputs)
    monkeypatch.setattr(quantised, "join_layers", lambda _: None)
    apart = build_quantised(model, inputs)
    assert joined is not None
    assert apart is not None
    error = (apart.logits(inputs) - model(inputs)).abs().max()
    # A value on the border of two levels may fall to either side.
    assert (joined.logits(inputs) - apart.logits(inputs)).abs().max() < 0.5 * error
    again = joined.logits(inputs)
    assert torch.equal(again, joined.logits(inputs))


class Shared(Residual):
    """One layer, called where its output goes to a layer and where it does not."""

    def forward(self, inputs: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.first(inputs)))
        maps = torch.relu(self.b(torch.relu(self.a(maps))))
        logits: Tensor = self.head(torch.relu(self.a(maps)).mean(dim=(2, 3)))
        return logits


@needs_bytes
def test_a_layer_that_is_called_twice_passes_on_float32() -> None:
    model, inputs = _small(Shared)
    form = build_quantised(model, inputs)
    assert form is not None
    assert _steps(form)[1:] == ["a: plain", "relu", "b: bytes", "a: plain", "relu", "mean"]
    assert (form.logits(inputs) - model(inputs)).abs().max() < 0.02


@needs_bytes
def test_pieces_are_put_together_again() -> None:
    model, inputs = _small(Residual)
    form = build_quantised(model, inputs)
    assert form is not None
    whole = form.logits(inputs)
    for piece in (1, 5, 32, 100):
        form.piece = piece
        torch.testing.assert_close(form.logits(inputs), whole, atol=1e-5, rtol=0)
    assert form.logits(inputs[:0]).shape == (0, 3)


def test_what_has_no_such_form_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.rand(4, 1, 8, 8)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert (
        build_quantised(wrap_module(linear, num_classes=3, input={"channels": 1}), inputs) is None
    )
    monkeypatch.setattr(quantised, "_is_supported", lambda _: False)
    assert build_quantised(load_model("digits/Linf-0.2/pgd-at"), inputs) is None


@needs_bytes
@pytest.mark.parametrize(("gain", "queries"), [(1.4, "fp32 folded"), (1.6, "int8 folded")])
def test_queries_alone_go_to_the_form_without_gradients(
    gain: float, queries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: object, form: EagerModel, what: str, size: int) -> tuple[float, float]:
        assert what == "logits" or "int8" not in form.description
        rate = {"fp32 folded": 1000.0, "int8 folded channels-last": 1000.0 * gain}
        return rate.get(form.description, 1.0), size / rate.get(form.description, 1.0)

    monkeypatch.setattr(trial.Trial, "_measured", measured)
    model = load_model("digits/Linf-0.2/pgd-at")
    data = load_dataset("digits").subset(64)
    arguments = model, data.batch(range(64)), data.labels

    def choose(planned_queries: float) -> Any:
        return choose_search_model(
            *arguments,
            precision="auto",
            threat_model=THREAT,
            batch_size=64,
            planned_passes=10**9,
            planned_queries=planned_queries,
        ).models

    models = choose(10**9)
    assert models.queries.description.startswith(queries)
    assert (models.queries is models.search) == (gain < 1.5)
    assert {m.description for m in (models.search, models.even, models.exact)} == {"fp32 folded"}
    few = choose(0)
    assert few.queries is few.search


@needs_bytes
def test_square_in_bytes_is_repeated_near_the_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is that of a search in float32, and the record says what searched."""
    model = load_model("digits/Linf-0.2/trades")
    data = load_dataset("digits").subset(60)
    square = AttackSpec(name="square", attack="square", params={"queries": 300})
    suite = Suite(name="queries", attacks=(square,))

    def accuracy(precision: str) -> tuple[float, Any]:
        (stored,) = robench.evaluate(
            model, data, suite, threat_model="L2-0.8", device="cpu", precision=precision
        )
        return float((stored.table["outcome"] == "survived").mean()), stored.record

    expected, _ = accuracy("fp32")
    monkeypatch.setattr(precisions, "_AUTO", {})  # no bfloat16
    monkeypatch.setattr(precisions, "_WORTH_MEASURING", 0.0)
    monkeypatch.setattr(trial, "_TIMING_SECONDS", 0.001)
    monkeypatch.setattr(trial, "_GAIN_OF_BYTES", 0.0)
    seen, record = accuracy("auto")
    # The second is on what the record names for all others, here the folded network in float32.
    assert [stage.search for stage in record.stages] == ["int8 folded channels-last", None]
    assert abs(seen - expected) <= 1 / 60 + 1e-9
