"""The tests for masking on networks whose answers are known, and on plain masks of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from attack_models import digits_data, digits_network, linear_problem
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robench.attacks.losses import margin_loss
from robench.doctor.subject import Subject
from robench.models import wrap_module
from robench.records import Diagnosis
from robench.threat_models import Norm, ThreatModel
from robench.validity.binarisation import Heads, binarisation, discriminant
from robench.validity.continuity import continuity, largest_jumps
from robench.validity.fidelity import agreements, fidelity
from robench.validity.probing import Probing
from robench.validity.resolution import resolution
from robench.validity.stability import stability

THREAT = ThreatModel.parse("Linf-0.2")
TESTS = {
    "fidelity": fidelity,
    "continuity": continuity,
    "stability": stability,
    "resolution": resolution,
}


class Around(nn.Module):
    """A network with something done to what goes in or comes out."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.network = digits_network()
        self.before = before
        self.after = after

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(self.network(self.before(inputs)))


@cache
def _digits(n: int) -> tuple[Tensor, Tensor]:
    _, _, inputs, labels = digits_data()
    with torch.no_grad():
        right = digits_network()(inputs).argmax(dim=1) == labels
    return inputs[right][:n], labels[right][:n]


def _subject(module: nn.Module, inputs: Tensor, labels: Tensor, classes: int = 10) -> Subject:
    model = wrap_module(module, num_classes=classes, input={"channels": 1}, share=True)
    return Subject(model, inputs, labels)


def _around(n: int = 16, **parts: Callable[[Tensor], Tensor]) -> Subject:
    return _subject(Around(**parts), *_digits(n))


def _said(subject: Subject) -> dict[str, Diagnosis]:
    return {name: test(subject, THREAT, 0) for name, test in TESTS.items()}


def _probing(module: nn.Module, inputs: Tensor, labels: Tensor, threat: ThreatModel) -> Probing:
    return Probing(_subject(module, inputs, labels, 2), threat, 0)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_linear_model_changes_as_its_gradient_says(norm: Norm):
    model, inputs, labels, _, threat = linear_problem(norm, 2, count=16)
    probing = _probing(model, inputs, labels, threat)
    gradient = probing.gradient(margin_loss)
    assert gradient is not None
    for seen in agreements(probing, gradient):
        assert seen.error < 1e-4
        assert seen.explained == pytest.approx(1.0, abs=1e-3)
    said = fidelity(probing.subject, threat, 0)
    assert (said.outcome, said.asks_for) == ("sound", ())


def test_a_gradient_of_twice_the_size_is_off_by_a_third():
    """|2c − c| / (2c + c), at every step and along every direction."""
    model, inputs, labels, _, threat = linear_problem("Linf", 2, count=16)
    probing = _probing(model, inputs, labels, threat)
    gradient = probing.gradient(margin_loss)
    assert gradient is not None
    for seen in agreements(probing, 2 * gradient):
        assert seen.error == pytest.approx(1 / 3, abs=1e-3)


class Steps(nn.Module):
    """Two logits that differ by the mean pixel, rounded down to tenths."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.flatten(1).mean(dim=1)
        lead = mean + ((10 * mean).floor() / 10 - mean).detach()
        return torch.stack((lead, -lead), dim=1)


def test_a_staircase_jumps_by_one_step_of_its_climb():
    inputs = torch.full((2, 1, 4, 4), 0.25)
    probing = _probing(Steps(), inputs, torch.tensor([0, 0]), THREAT)
    # From 0.25 to 0.95: 0.2 to 0.9, seven steps of a tenth.
    jumps = largest_jumps(probing, torch.full_like(inputs, 0.95))
    assert jumps.tolist() == pytest.approx([1 / 7] * 2, rel=1e-5)
    # A way of one step is all jump; one that does not reach the next has none.
    assert largest_jumps(probing, torch.full_like(inputs, 0.34)).tolist() == pytest.approx([1] * 2)
    assert largest_jumps(probing, torch.full_like(inputs, 0.29)).tolist() == [0.0, 0.0]


class Drawn(nn.Module):
    """Linear, with a logit drawn anew at each pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        lead = inputs.flatten(1).sum(dim=1)
        return torch.stack((lead, torch.randn(len(inputs))), dim=1)


def test_random_outputs_are_for_the_doctor_to_find_and_jump_nowhere():
    inputs = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    subject = _subject(Drawn(), inputs, torch.zeros(4).long(), 2)
    assert fidelity(subject, THREAT, 0).outcome == "sound"
    assert continuity(subject, THREAT, 0).outcome == "sound"
    assert stability(subject, THREAT, 0).outcome == "sound"


def test_nothing_is_said_of_a_sound_network():
    said = _said(_around())
    assert {name: d.outcome for name, d in said.items()} == dict.fromkeys(TESTS, "sound")
    assert all(d.asks_for == () and not d.severe and d.value is not None for d in said.values())


def _grid(levels: int, straight: bool) -> Callable[[Tensor], Tensor]:
    def before(inputs: Tensor) -> Tensor:
        rounded = (inputs * levels).round() / levels
        return inputs + (rounded - inputs).detach() if straight else rounded

    return before


def _off_grid(inputs: Tensor) -> Tensor:
    """Off the grey levels of the data, the picture in a mirror."""
    off = (inputs * 16 - (inputs * 16).round()).abs().flatten(1).amax(dim=1) > 1e-3
    return torch.where(off[:, None, None, None], inputs.flip(3), inputs)


def _refusing(inputs: Tensor) -> Tensor:
    if inputs.requires_grad:
        raise RuntimeError("no gradients here")
    return inputs


MASKS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "detached": ({"after": Tensor.detach}, {"fidelity"}),
    "refusing": ({"before": _refusing}, {"fidelity"}),
    "four levels": ({"before": _grid(4, False)}, {"fidelity", "continuity", "stability"}),
    "straight through": ({"before": _grid(4, True)}, {"fidelity", "continuity", "stability"}),
    "off the grid": ({"before": _off_grid}, {"fidelity", "continuity", "stability"}),
    "scaled": ({"after": lambda z: 1e6 * z}, {"resolution"}),
    "shrunk": ({"after": lambda z: 1e-6 * z}, {"resolution"}),
    "far away": ({"after": lambda z: z + 1e8}, {"resolution"}),
    "scaled and far away": ({"after": lambda z: 1e6 * z + 1e8}, {"resolution"}),
    "half precision": ({"after": lambda z: (z + 1000).half()}, {"resolution"}),
    "clamped": ({"after": lambda z: z.clamp(-1, 1)}, {"fidelity", "resolution"}),
    "sharp": ({"after": lambda z: (100 * z).softmax(1)}, {"fidelity", "resolution"}),
    "one-hot": (
        {"after": lambda z: one_hot(z.argmax(1), 10).float()},
        {"fidelity", "continuity", "resolution"},
    ),
}


@pytest.mark.parametrize(
    "mask",
    [
        # Scaled, and far away, are masks of their own.
        pytest.param(mask, marks=pytest.mark.slow if mask == "scaled and far away" else ())
        for mask in MASKS
    ],
)
def test_a_mask_is_named_for_what_it_is(mask: str):
    parts, wanted = MASKS[mask]
    said = _said(_around(**parts))
    assert {name for name, d in said.items() if d.outcome == "masked"} == wanted
    assert all(said[name].asks_for for name in wanted)
    if "resolution" in wanted:
        assert "scale-free" in said["resolution"].asks_for


@pytest.mark.parametrize("levels", [255, 256])
def test_eight_bits_straight_through_hide_nothing(levels: int):
    said = _said(_around(before=_grid(levels, True)))
    assert {d.outcome for d in said.values()} == {"sound"}


def test_without_a_gradient_the_masking_is_severe_and_asks_for_what_needs_none():
    said = fidelity(_around(after=Tensor.detach), THREAT, 0)
    assert said.severe
    assert {"distilled", "decision", "square-more"} <= set(said.asks_for)


def test_a_diagnosis_is_the_same_again():
    subject = _around(8)
    torch.manual_seed(1)
    first = _said(subject)
    torch.manual_seed(2)
    assert _said(subject) == first


def test_a_head_is_right_about_the_points_it_was_made_of():
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    border = torch.full((6,), 5.0, dtype=torch.float64)
    head = discriminant(inner, border)
    assert head is not None
    weight, bias = head
    assert bool((inner @ weight + bias < 0).all())
    assert float(border @ weight + bias) > 0
    assert discriminant(inner, inner.mean(dim=0)) is None
    assert discriminant(torch.zeros_like(inner), border) is None


def test_each_point_goes_to_the_head_of_its_row():
    heads = Heads(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 10.0]))
    logits = heads.logits(torch.tensor([[2.0, 3.0], [2.0, 3.0]]), torch.tensor([1, 0]))
    assert logits.tolist() == [[-6.5, 6.5], [-1.0, 1.0]]


def test_the_attack_finds_what_is_there_by_construction():
    said = binarisation(_around(8), THREAT, 0)
    assert (said.outcome, said.value) == ("sound", 1.0)


def test_a_wrong_gradient_fails_the_binarisation_test():
    said = binarisation(_around(8, before=lambda x: x.detach() - x + x.detach()), THREAT, 0)
    assert said.outcome == "masked"
    assert said.value is not None
    assert said.value < 0.5


def test_a_network_without_a_linear_layer_has_no_features():
    model, inputs, labels, _, threat = linear_problem("Linf", 2, count=4)
    said = binarisation(_subject(model, inputs, labels, 2), threat, 0)
    assert said.outcome == "undefined"
    assert "no penultimate features" in said.evidence
