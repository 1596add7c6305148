"""What a network says inside and withholds: found, named, and searched in its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_models import digits_data, digits_network, run_search
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robench.attacks.losses import margin
from robench.attacks.pgd import PGD
from robench.doctor.subject import Subject
from robench.errors import AttackError
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel
from robench.stand_ins.base import Setting
from robench.stand_ins.hidden import Hidden
from robench.threat_models import ThreatModel
from robench.validity.hidden_outputs import hidden_outputs, unexplained

THREAT = ThreatModel.parse("Linf-0.2")


class Around(nn.Module):
    """Two networks, and something that is made of what they say."""

    def __init__(self, made: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = digits_network(), digits_network(2)
        self.made = made

    def forward(self, inputs: Tensor) -> Tensor:
        return self.made(inputs, self.first(inputs), self.second(inputs))


def _off_grid(inputs: Tensor) -> Tensor:
    return ((16 * inputs).round() - 16 * inputs).flatten(1).abs().amax(dim=1) > 1e-3


MADE: dict[str, tuple[bool, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "the head": (False, lambda x, a, b: a),
    "temperature and offset": (False, lambda x, a, b: 7 * a + 30),
    "log-softmax": (False, lambda x, a, b: a.log_softmax(dim=1)),
    "a mean": (False, lambda x, a, b: 0.3 * a + 0.7 * b),
    "softmax": (True, lambda x, a, b: a.softmax(dim=1)),
    "labels": (True, lambda x, a, b: one_hot(a.argmax(dim=1), 10).float()),
    "a vote": (True, lambda x, a, b: sum(one_hot(z.argmax(dim=1), 10).float() for z in (a, b))),
    "clamped": (True, lambda x, a, b: a.clamp(-1, 1)),
    "a detector": (True, lambda x, a, b: torch.where(_off_grid(x)[:, None], b.abs(), a)),
    "the other decides": (True, lambda x, a, b: a * (1 + one_hot(b.argmax(dim=1), 10))),
}


def _model(made: Callable[[Tensor, Tensor, Tensor], Tensor]) -> RobenchModel:
    return wrap_module(Around(made), num_classes=10, input={"channels": 1}, share=True)


def _samples(model: nn.Module, n: int = 24) -> tuple[Tensor, Tensor]:
    _, _, inputs, labels = digits_data()
    with torch.no_grad():
        right = model(inputs).argmax(dim=1) == labels
    return inputs[right][:n], labels[right][:n]


@pytest.mark.parametrize("name", MADE)
def test_what_no_sum_of_heads_explains_is_hidden(name: str) -> None:
    masked, made = MADE[name]
    model = _model(made)
    said = hidden_outputs(Subject(model, *_samples(model)), THREAT, 0)
    assert said.outcome == ("masked" if masked else "sound"), said.evidence
    assert ("hidden" in said.asks_for) == masked
    assert "(2: first.5, second.5)" in said.evidence


def test_where_there_is_nothing_to_compare_it_says_nothing() -> None:
    inputs, labels = _samples(digits_network())
    flat = wrap_module(_Pixels(), num_classes=10, input={"channels": 1}, share=True)
    said = hidden_outputs(Subject(flat, inputs, labels), THREAT, 0)
    assert said.outcome == "undefined"
    assert "no layer with weights" in said.evidence
    with pytest.raises(AttackError, match="no layer of the network"):
        Hidden().build(Setting(flat, inputs, labels, THREAT, 0, 8))


class _Pixels(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[:, :10]


def test_two_classes_are_too_few() -> None:
    model = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), num_classes=2)
    subject = Subject(model, torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
    assert hidden_outputs(subject, THREAT, 0).outcome == "undefined"


def test_what_is_left_is_measured_against_the_outputs() -> None:
    """Of a right angle all is left, of 45 degrees the sine."""
    head = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    across = torch.tensor([[1.0, 1.0, -2.0]], dtype=torch.float64) / 3**0.5
    assert unexplained(head[None], 5 * head + 3) == pytest.approx(0, abs=1e-12)
    assert unexplained(head[None], across) == pytest.approx(1)
    assert unexplained(head[None], head + across) == pytest.approx(0.5**0.5)


def test_the_logits_inside_lead_out_of_labels() -> None:
    """Half of the ball that the network itself is broken in: PGD on labels finds nothing."""
    model = _model(MADE["labels"][1])
    inputs, labels = _samples(model)
    built = Hidden().build(Setting(model, inputs, labels, THREAT, 0, batch_size=8))
    first, second = model.network.first, model.network.second
    expected = sum(z / margin(z, labels).median() for z in (net(inputs) for net in (first, second)))
    torch.testing.assert_close(built.logits(inputs), expected)
    assert built.description == "fp32, logits inside: first.5, second.5"
    attack = PGD(THREAT, steps=10)
    found = run_search(attack, model, inputs, labels, search=built, judges_every_step=True).found
    blind = run_search(attack, model, inputs, labels).found
    assert int(found.broken.sum()) > int(blind.broken.sum()) + 5
