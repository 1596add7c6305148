"""Models that remember or count are asked as they were given."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.evaluation.as_given import as_given
from robench.models import RobenchModel, wrap_module
from robench.probes import FirstState
from robench.records import AttackSpec, Outcome, Suite


class Changing(nn.Module):
    """The mean pixel decides between two classes, for some passes; from then on it is class 0."""

    def __init__(self, passes: int = 2) -> None:
        super().__init__()
        self.passes = passes
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.calls = 0
        self.seen: list[Tensor] = []
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(inputs)
        self.latest = inputs
        self.mean += 1
        if bool((inputs > 1).any()):
            raise ValueError("too bright")
        lead = self.scale * (inputs.mean(dim=(1, 2, 3)) - 0.5)
        if self.calls > self.passes:
            lead = lead * 0 - 1
        return torch.stack((-lead, lead), dim=1)


def wrapped() -> RobenchModel:
    return wrap_module(Changing(), num_classes=2, input={"channels": 1}, share=True)


def test_a_pass_leaves_nothing_behind():
    model = wrapped()
    first = FirstState.of(model.network)
    assert first is not None
    model(torch.rand(2, 1, 4, 4))
    given = as_given(model, first, ["raises"])
    bright = torch.full((2, 1, 4, 4), 0.75)
    said = [given(bright) for _ in range(4)]
    assert all(torch.equal(one, said[0]) for one in said)
    assert said[0].argmax(dim=1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="too bright"):
        given(bright + 1)
    network = model.network
    assert isinstance(network, Changing)
    assert (network.calls, network.seen, float(network.mean)) == (0, [], 0.0)
    assert not hasattr(network, "latest")
    assert given.network.scale is network.scale


def test_a_copy_of_it_is_asked_as_it_was_given_too():
    model = wrapped()
    first = FirstState.of(model.network)
    assert first is not None
    given = copy.deepcopy(as_given(model, first, ["raises"]))
    bright = torch.full((1, 1, 4, 4), 0.75)
    assert [int(given(bright).argmax()) for _ in range(4)] == [1, 1, 1, 1]
    assert given.network.calls == 0


def test_a_model_that_neither_remembers_nor_counts_is_asked_itself():
    model = wrapped()
    assert as_given(model, FirstState.of(model.network), ["randomised"]) is model
    assert as_given(model, None, ["raises"]) is model


def test_what_cannot_be_copied_is_asked_as_it_is():
    model = wrapped()
    model.network.lines = (line for line in "ab")  # type: ignore[assignment]
    assert FirstState.of(model.network) is None


def test_the_network_before_it_changes_is_evaluated(tmp_path: Path):
    labels = torch.arange(12) % 2
    inputs = 0.5 + 0.02 * (2 * labels - 1)[:, None, None, None] * torch.ones(12, 1, 4, 4)
    suite = Suite(
        name="few", attacks=(AttackSpec(name="pgd-12", attack="pgd", params={"steps": 12}),)
    )
    (found,) = robench.evaluate(
        Changing(10),
        ArrayDataset(inputs, labels, num_classes=2),
        suite,
        results=tmp_path,
        threat_model="Linf-0.05",
        device="cpu",
        precision="fp32",
    )
    record = found.record
    assert {"history_dependent", "asked_as_given"} <= {flag.name for flag in record.flags}
    assert record.count(Outcome.BROKEN) == 12
