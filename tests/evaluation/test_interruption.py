"""Interrupted anywhere, a search goes on from its last step, and ends as if nothing had been."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import FrameType
from typing import Any

import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel, SearchModels
from robench.datasets import ArrayDataset
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.cascade import Cascade
from robench.evaluation.prepared_model import PreparedModel, Settings, prepare_model
from robench.evaluation.search import Search
from robench.models import wrap_module
from robench.records import AttackSpec, AuditSpec
from robench.threat_models import ThreatModel

SAMPLES, SLOTS, SHARD = 8, 3, 5
INPUTS = images(SAMPLES, seed=1)
LABELS = predictions(ExactNetwork(), INPUTS)


class Countdown:
    """Raises KeyboardInterrupt at a given pass, forwards and backwards counted alike."""

    def __init__(self, at: int) -> None:
        self.passes = 0
        self.at = at

    def __call__(self) -> None:
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt

    def __deepcopy__(self, _: Any) -> Countdown:
        return self  # a model may be copied; there is one count


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, countdown: Countdown) -> Tensor:
        ctx.countdown = countdown
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.countdown()
        return gradient, None


class Interrupted(ExactNetwork):
    """Interrupts the pass that a countdown says, before it has a result."""

    def __init__(self, countdown: Countdown) -> None:
        super().__init__()
        self.countdown = countdown

    def forward(self, inputs: Tensor) -> Tensor:
        self.countdown()
        logits: Tensor = _Backward.apply(super().forward(inputs), self.countdown)
        return logits


@cache
def prepared(threat: ThreatModel) -> PreparedModel:
    """The samples of this file, all correctly classified, and a model that nothing interrupts."""
    model = wrap_module(
        ExactNetwork(), num_classes=6, input={"channels": 1}, threat_model=threat
    ).eval()
    settings = Settings(precision="fp32", batch_size=SLOTS, workers=1)
    data = ArrayDataset(INPUTS, LABELS, num_classes=6)
    return replace(prepare_model(model, data, threat, settings, []), shard_size=SHARD)


class LatestSnapshot:
    """Keeps what the last snapshot that was offered holds, as the runner does when interrupted."""

    def __init__(self) -> None:
        self.make: Callable[[], dict[str, Any]] | None = None

    def __call__(self, make: Callable[[], dict[str, Any]]) -> None:
        self.make = make

    def through_a_file(self) -> dict[str, Any] | None:
        if self.make is None:
            return None
        file = io.BytesIO()
        torch.save(self.make(), file)
        file.seek(0)
        content: dict[str, Any] = torch.load(file, weights_only=True)
        return content


def run(
    spec: AttackSpec,
    threat: ThreatModel,
    countdown: Countdown,
    snapshot: dict[str, Any] | None,
    save: Any = None,
) -> dict[str, Any]:
    """What the attack does to every sample, passes included."""
    network: nn.Module = Interrupted(countdown)
    model = wrap_module(network, num_classes=6, input={"channels": 1}, threat_model=threat).eval()
    clean = prepared(threat)
    choice = replace(clean.choice, models=SearchModels.all_on(SearchModel(model)))
    adjudicator = Adjudicator(model, threat, SLOTS)
    clean = replace(clean, model=model, choice=choice, adjudicator=adjudicator)
    cascade = Cascade(spec, clean, save=save)
    done = cascade.run(torch.zeros(len(clean), 1, 6, 6), snapshot)
    counted = ("name", "attempted", "broken", "errored", "forwards", "backwards")
    return {
        "stage": done.stage.tolist(),
        "points": done.adv_inputs[torch.arange(len(clean))].tolist(),
        "margins": done.closest_margin.tolist(),
        "sizes": done.found_size.nan_to_num(-1).tolist(),
        "forwards": done.forwards.tolist(),
        "backwards": done.backwards.tolist(),
        "errors": done.errors,
        "stages": [tuple(getattr(stage, name) for name in counted) for stage in done.stages],
        "flags": cascade.flags(done),
        "audit": done.audit,
    }


def attack(name: str, kind: str, **params: Any) -> AttackSpec:
    return AttackSpec(name=name, attack=kind, params=params)


FEEBLE = attack("feeble", "pgd", steps=1, relative_step_size=0.1, random_start=False)
APGD_CE = attack("apgd-ce", "apgd", steps=3)
APGD_T = attack("apgd-t", "apgd", loss="dlr-targeted", steps=3, targets=3)
MALT = attack("apgd-t-malt", "apgd", loss="dlr-targeted", steps=3, targets=3, target_order="malt")
FAB_T = attack("fab-t", "fab", steps=2, targets=2)
SQUARE = attack("square", "square", queries=8)
LINF, L2 = ThreatModel.of("Linf", "0.02"), ThreatModel.of("L2", "0.12")
CASES: dict[str, tuple[AttackSpec, ThreatModel]] = {
    "fgsm": (attack("fgsm", "pgd", steps=1, relative_step_size=1.0, random_start=False), LINF),
    "pgd": (attack("pgd", "pgd", steps=3, restarts=2), LINF),
    "pgd-all-targets": (
        attack("pgd", "pgd", steps=2),
        ThreatModel.of("Linf", "0.1").aimed_at("all"),
    ),
    "pma": (attack("pma", "pma", steps=3), LINF),
    "fmn": (attack("fmn", "fmn", steps=6), LINF),
    "cw-l2": (attack("cw-l2", "cw-l2", rounds=2, steps=4), L2),
    "apgd-ce": (APGD_CE, LINF),
    "apgd-t": (APGD_T, LINF),
    "apgd-t-malt": (MALT, LINF),
    "fab-t": (FAB_T, LINF),
    "square": (SQUARE, ThreatModel.of("Linf", "0.06")),
    "square-l2": (SQUARE, ThreatModel.of("L2", "0.4")),
    "aa-standard": (
        AttackSpec(name="aa-standard", stages=(APGD_CE, APGD_T, FAB_T, SQUARE)),
        LINF,
    ),
    "aa-core": (
        AttackSpec(
            name="aa-core",
            stages=(APGD_CE, FAB_T, SQUARE),
            audit=AuditSpec(fraction=0.01, minimum=4, first_stage=1),
        ),
        LINF,
    ),
    "by-stages": (
        AttackSpec(
            name="by-stages",
            stages=(FEEBLE, APGD_CE, FAB_T),
            audit=AuditSpec(fraction=0.01, minimum=4, first_stage=1),
        ),
        LINF,
    ),
}


def test_the_audit_goes_as_far_as_it_has_to_and_no_further() -> None:
    """What the other tests of this file interrupt is an escalation that ends before the last stage."""
    outcome = run(*CASES["by-stages"], Countdown(-1), None)
    assert outcome["audit"].escalated_to == "apgd-ce"
    names = [stage[0] for stage in outcome["stages"]]
    assert names == ["feeble", "apgd-ce", "fab-t", "apgd-ce"]


@pytest.mark.parametrize(
    "every",
    [pytest.param(False, id="some"), pytest.param(True, id="every", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", CASES)
def test_an_interruption_in_any_pass_changes_nothing(
    name: str, every: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each, or in the last, and in one where searches have left the queue and are in no snapshot yet."""
    spec, threat = CASES[name]
    counted = Countdown(at=-1)
    starts: list[int] = []
    start = Search._start

    def noted(self: Any, *searches: Tensor) -> None:
        starts.append(counted.passes + 1)
        start(self, *searches)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_start", noted)
        unbroken = run(spec, threat, counted, None)
    assert -1 in unbroken["stage"]
    assert max(unbroken["stage"]) >= 0
    assert counted.passes > 8
    last = counted.passes
    chosen = range(1, last + 1) if every else {starts[len(starts) // 2], last}
    for at in chosen:
        kept = LatestSnapshot()
        with pytest.raises(KeyboardInterrupt):
            run(spec, threat, Countdown(at), None, kept)
        resumed = run(spec, threat, Countdown(-1), kept.through_a_file())
        assert resumed == unbroken, at


@pytest.mark.parametrize("name", ["apgd-t", "aa-core", "by-stages"])
def test_a_run_that_is_interrupted_again_and_again_comes_to_the_same_end(name: str) -> None:
    spec, threat = CASES[name]
    unbroken = run(spec, threat, Countdown(-1), None)
    snapshot, interruptions = None, 0
    patience = random.Random(0)
    while True:
        kept = LatestSnapshot()
        try:
            outcome = run(spec, threat, Countdown(patience.randint(4, 12)), snapshot, kept)
            break
        except KeyboardInterrupt:
            interruptions += 1
            snapshot = kept.through_a_file() or snapshot
    assert interruptions > 2
    assert outcome == unbroken


class AtLine:
    """Raises KeyboardInterrupt before the n-th line that is executed in the search's own files."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if "/evaluation/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize(
    "points", [pytest.param(2, id="some"), pytest.param(60, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["apgd-t", "square", "aa-core"])
def test_an_interruption_between_any_two_lines_changes_nothing(name: str, points: int) -> None:
    """As Ctrl-C comes: between attack and verdict, between verdict and bookkeeping, anywhere."""
    spec, threat = CASES[name]
    prepared(threat)
    before = sys.gettrace()
    everything = AtLine(-1)
    try:
        sys.settrace(everything)
        unbroken = run(spec, threat, Countdown(-1), None)
        for at in random.Random(0).sample(range(1, everything.lines), points):
            kept = LatestSnapshot()
            sys.settrace(AtLine(at))
            with pytest.raises(KeyboardInterrupt):
                run(spec, threat, Countdown(-1), None, kept)
            sys.settrace(None)
            resumed = run(spec, threat, Countdown(-1), kept.through_a_file())
            assert resumed == unbroken, at
    finally:
        sys.settrace(before)
