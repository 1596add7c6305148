"""Indicators of attack failure: on traces with known answers, and on networks that mislead attacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from attack_models import digits_data, digits_network
from torch import Tensor, nn

from robench.doctor.subject import Subject
from robench.models import wrap_module
from robench.records import Diagnosis
from robench.reporting.traces import attack_failures, stage_traces
from robench.threat_models import ThreatModel
from robench.validity.attack_failure import attack_failure

THREAT = ThreatModel.parse("Linf-0.04")


def search(sample: str, **columns: Any) -> pd.DataFrame:
    """A search's rows; ``loss``, ``margin`` and ``gradient_norm`` by step."""
    steps = len(next(iter(columns.values())))
    plain = {"margin": [1.0] * steps, "loss": [0.0] * steps, "gradient_norm": [1.0] * steps}
    about = {"sample_id": sample, "stage": "apgd", "recheck": False, "search": 0}
    return pd.DataFrame({**plain, **columns, "step": range(1, steps + 1)}).assign(**about)


def told(*searches: pd.DataFrame) -> dict[str, Diagnosis]:
    frames = [pd.concat(searches[:3]), pd.concat(searches[3:])]
    names = [s["sample_id"].iloc[0] for s in searches]
    return {d.test: d for d in attack_failures(frames, names, "apgd")}


def test_a_search_is_cut_short_whose_loss_still_rises() -> None:
    """By a tenth of all in the last ten of a hundred steps; by a twentieth it may."""
    rising, slower = (
        np.linspace(0, 1, 101),
        np.r_[np.linspace(0, 19, 91), np.linspace(19, 19.9, 10)],
    )
    done = np.minimum(rising, 0.5)
    zigzag = np.where(np.arange(101) % 2 == 0, rising, -1)
    for losses, share in ((rising, 1), (zigzag, 1), (slower, 0), (done, 0)):
        found = told(*(search(f"s{i}", loss=losses) for i in range(6)))["incomplete_search"]
        assert (found.value, found.outcome) == (share, "masked" if share else "sound")
    short = told(*(search(f"s{i}", loss=rising[:15]) for i in range(6)))
    assert short["incomplete_search"].outcome == "undefined"


def test_gradients_that_are_gone_and_successes_that_were_passed_over_are_counted() -> None:
    lost = search("lost", gradient_norm=[1.0, 0.0, 0.0])
    silent = search("silent", margin=[1.0, -0.1, 1.0])
    found = told(lost, silent, *(search(f"s{i}", loss=[0.0, 1.0, 2.0]) for i in range(8)))
    assert found["gradients_lost"].value == found["silent_success"].value == 0.1
    assert found["gradients_lost"].outcome == "sound"
    assert found["silent_success"].outcome == "masked"
    assert "1 of 10" in found["silent_success"].evidence
    again = told(
        lost, lost.assign(sample_id="too"), *(search(f"s{i}", loss=[0.0] * 3) for i in range(5))
    )
    assert again["gradients_lost"].outcome == "masked"


def test_curves_are_medians_of_what_was_best_so_far() -> None:
    searches = [
        search("a", margin=[3.0, 1.0, 2.0], loss=[0.0, 2.0, 1.0]),
        search("b", margin=[1.0]),
    ]
    searches += [search("c", margin=[5.0, 4.0, np.nan], gradient_norm=[2.0, np.nan, 4.0])]
    near = search("a", margin=[-9.0]).assign(recheck=True)
    (trace,) = stage_traces(lambda: iter([pd.concat([searches[0], near]), pd.concat(searches[1:])]))
    assert (trace.stage, trace.searches, trace.steps.tolist()) == ("apgd", 3, [1, 2, 3])
    assert trace.spreads["best_margin"].median.tolist() == [3, 1, 1]
    assert trace.spreads["best_margin"].low.tolist() == [2, 1, 1]
    assert trace.spreads["best_loss"].high.tolist() == [0, 1, 1]
    assert trace.spreads["gradient_norm"].median.tolist() == [1, 1, 1]


class Rounded(nn.Module):
    """A network that rounds its logits: no gradient at all."""

    def __init__(self) -> None:
        super().__init__()
        self.network = digits_network()

    def forward(self, inputs: Tensor) -> Tensor:
        return (4 * self.network(inputs)).round()


class Fickle(Rounded):
    """One that lies to whoever wants a gradient."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits.roll(1, dims=1) if torch.is_grad_enabled() else logits


def _said(module: nn.Module, n: int = 8) -> dict[str, Diagnosis]:
    _, _, inputs, labels = digits_data()
    model = wrap_module(module, num_classes=10, input={"channels": 1}, share=True)
    with torch.no_grad():
        right = digits_network()(inputs).argmax(dim=1) == labels
    subject = Subject(model, inputs[right][:n], labels[right][:n])
    return {said.test: said for said in attack_failure(subject, THREAT, 0)}


def test_a_sound_network_has_no_indicator() -> None:
    found = _said(digits_network())
    assert list(found) == [
        "gradients_lost",
        "incomplete_search",
        "silent_success",
        "unbounded_attack",
    ]
    assert {said.outcome for said in found.values()} == {"sound"}, found


def test_rounded_logits_lead_nowhere() -> None:
    found = _said(Rounded())
    for name in ("gradients_lost", "unbounded_attack"):
        assert found[name].outcome == "masked", found[name]
        assert "square-more" in found[name].asks_for


def test_what_the_judge_does_not_see_is_silent() -> None:
    assert _said(Fickle())["silent_success"].outcome == "masked"
