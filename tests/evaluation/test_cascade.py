"""Stages, the audit of the core protocol, and attacks on other outputs."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from combinations import one_at_a_time
from torch import Tensor, nn

import robench
from robench.acceleration.search_models import SearchModel, SearchModels
from robench.attacks.base import Gradient
from robench.attacks.losses import Loss
from robench.attacks.suites import load_suite
from robench.datasets import ArrayDataset
from robench.errors import AttackError
from robench.evaluation.cascade import Cascade
from robench.evaluation.prepared_model import Settings, prepare_model
from robench.execution import ThisProcess
from robench.models import wrap_module
from robench.records import AttackSpec, AuditSpec, EvaluationRecord, Outcome, Suite
from robench.statistics import missed_share_upper
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")


class Threshold(nn.Module):
    """Two classes, decided by the sign of the mean pixel minus one half; optionally masked.

    With ``masked`` the gradient of the logits is zero everywhere, as in a defense that hides it.
    """

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.masked = masked

    def forward(self, inputs: Tensor) -> Tensor:
        lead = self.scale * (inputs.mean(dim=(1, 2, 3)) - 0.5)
        if self.masked:
            lead = lead.sign() + 0 * lead
        return torch.stack((-lead, lead), dim=1)


def stripes(margins: list[float]) -> ArrayDataset:
    """Flat images whose mean is the given distance above one half; all of class 1."""
    inputs = torch.stack([torch.full((1, 4, 4), 0.5 + margin) for margin in margins])
    labels = torch.ones(len(margins), dtype=torch.int64)
    return ArrayDataset(inputs, labels, num_classes=2)


def evaluate(model: nn.Module, data: ArrayDataset, spec: AttackSpec, **options: Any) -> Any:
    suite = Suite(name="test", attacks=(spec,))
    return robench.evaluate(
        model, data, suite, threat_model="Linf-0.1", device="cpu", precision="fp32", **options
    )[0]


def pgd(name: str, **params: Any) -> AttackSpec:
    return AttackSpec(name=name, attack="pgd", params=params)


SQUARE = AttackSpec(name="square", attack="square", params={"queries": 60})


def test_only_survivors_go_on() -> None:
    # The mean moves by at most eps, so exactly the first two samples can be broken.
    data = stripes([0.02, 0.09, 0.12, 0.3])
    weak = pgd("weak", steps=1, relative_step_size=0.5, random_start=False)
    strong = pgd("strong", steps=4, random_start=False)
    stored = evaluate(Threshold(), data, AttackSpec(name="both", stages=(weak, strong)))
    record: EvaluationRecord = stored.record
    assert [(s.name, s.attempted, s.broken) for s in record.stages] == [
        ("weak", 4, 1),
        ("strong", 3, 1),
    ]
    assert record.counts == {
        Outcome.CLEAN_ERROR: 0,
        Outcome.BROKEN: 2,
        Outcome.SURVIVED: 2,
        Outcome.ERRORED: 0,
    }
    assert list(stored.table["broken_by"][:2]) == ["weak", "strong"]
    sizes = stored.table["perturbation_size"]
    assert (sizes <= 0.1 + 1e-6).all()


def test_a_stage_may_be_for_survivors_near_the_boundary_alone() -> None:
    """Nearness is the sample's own, its margin over its clean one; the audit looks at all."""
    # The mean moves by 0.1: of the margins a sixth is left, half and two thirds.
    data = stripes([0.02, 0.12, 0.2, 0.3])
    first = pgd("first", steps=4, random_start=False)
    near = pgd("near", steps=4, random_start=False).model_copy(update={"within": 0.4})
    spec = AttackSpec(
        name="core",
        stages=(first, near, SQUARE),
        audit=AuditSpec(fraction=0.01, minimum=3, first_stage=2),
    )
    record = evaluate(Threshold(), data, spec).record
    assert [(s.name, s.attempted) for s in record.stages] == [
        ("first", 4),
        ("near", 1),
        ("square", 3),
    ]


def audited(first: AttackSpec, *later: AttackSpec, minimum: int) -> AttackSpec:
    return AttackSpec(
        name="core",
        stages=(first, *later),
        audit=AuditSpec(fraction=0.01, minimum=minimum, first_stage=1),
    )


def test_audit_without_a_hit_states_its_bound() -> None:
    data = stripes([0.2 + 0.001 * i for i in range(60)])
    spec = audited(pgd("pgd", steps=2), SQUARE, minimum=20)
    record = evaluate(Threshold(), data, spec).record
    assert record.audit is not None
    assert (record.audit.survivors, record.audit.audited, record.audit.hits) == (60, 20, 0)
    assert not record.audit.escalated
    assert record.audit.missed_share_upper == missed_share_upper(0, 20, population=60)
    assert [s.attempted for s in record.stages] == [60, 20]


class Counted(ArrayDataset):
    """Counts the samples whose inputs are read."""

    reads: list[int]

    def _read(self, indices: list[int]) -> Tensor:
        self.reads.append(len(indices))
        return super()._read(indices)


def test_the_audit_is_drawn_without_loading_an_input() -> None:
    plain = stripes([0.2 + 0.001 * i for i in range(30)])
    data = Counted(plain.batch(range(30)), plain.labels, num_classes=2)
    data.reads = []
    run = cascade(data, audited(pgd("pgd", steps=1), SQUARE, minimum=10), haze=0.0)
    data.reads.clear()
    attacked = run.run(torch.zeros(30, 1, 4, 4))
    # What is attacked is loaded, a shard at a time, and nothing else.
    assert [stage.attempted for stage in attacked.stages] == [30, 10]
    assert sum(data.reads) == 40
    assert max(data.reads) == run.prepared.shard_size == 3


def test_a_hit_escalates_to_all_survivors() -> None:
    # The masked model gives PGD nothing to climb, but Square breaks what is within reach.
    data = stripes([0.05] * 60)
    spec = audited(pgd("pgd", steps=2, random_start=False), SQUARE, minimum=20)
    record = evaluate(Threshold(masked=True), data, spec).record
    assert record.audit is not None
    assert record.audit.escalated
    assert record.audit.hits > 0
    assert record.audit.escalated_to == "square"
    assert record.audit.missed_share_upper == 0.0
    assert sum(s.attempted for s in record.stages[1:]) == 60
    assert record.count(Outcome.BROKEN) == 60
    assert {flag.name for flag in record.flags} >= {"square_lowers_accuracy"}


FEEBLE = pgd("feeble", steps=1, relative_step_size=0.1, random_start=False)
STRONG = pgd("strong", steps=3, relative_step_size=0.4, random_start=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 3, "workers": 1},
        pytest.param({"batch_size": 7, "workers": 2}, marks=pytest.mark.slow),
    ],
)
def test_an_audit_escalates_as_far_as_it_found_something(options: dict[str, Any]) -> None:
    """Of 40 samples 10 are within reach; the last two stages can add nothing, and see 12 at most."""
    data = stripes([0.2] * 30 + [0.05] * 10)
    spec = audited(FEEBLE, STRONG, SQUARE, pgd("last", steps=1), minimum=12)
    stored = evaluate(Threshold(), data, spec, **options)
    audit = stored.record.audit
    hits = audit.hits
    assert 0 < hits < 10
    assert [(s.name, s.attempted, s.broken) for s in stored.record.stages] == [
        ("feeble", 40, 0),
        ("strong", 12, hits),
        ("square", 12 - hits, 0),
        ("last", 12 - hits, 0),
        ("strong", 28, 10 - hits),
    ]
    assert (audit.survivors, audit.audited) == (40, 12)
    assert (audit.escalated, audit.escalated_to) == (True, "strong")
    # 30 survive strong, 12 − hits of them audited, and no later hit: how many may there be?
    seen = 12 - hits
    likely = [k for k in range(31) if math.comb(30 - k, seen) > 0.05 * math.comb(30, seen)]
    assert audit.missed_share_upper == pytest.approx(max(likely) / 40)
    # Audited survivors alone were attacked by what costs more than the first two stages.
    passes = stored.table["forwards"][stored.table["outcome"] == "survived"]
    assert (passes > passes.min()).sum() == seen


def test_stages_that_an_audit_was_blind_in_are_due_for_all() -> None:
    """PGD has no gradient on the masked model, and nothing is within reach of anything."""
    data = stripes([0.2] * 30)
    again = SQUARE.model_copy(update={"name": "again"})
    spec = audited(SQUARE, pgd("blind", steps=1, loss="margin"), again, minimum=10)
    record = evaluate(Threshold(masked=True), data, spec).record
    assert [(s.name, s.attempted) for s in record.stages] == [
        *(("square", 30), ("blind", 10), ("again", 10)),
        ("blind", 20),
    ]
    assert (record.audit.hits, record.audit.escalated_to) == (0, "blind")
    assert record.audit.missed_share_upper == missed_share_upper(0, 10, population=30)


def test_an_audit_that_none_survives_says_nothing_of_later_stages() -> None:
    record = evaluate(
        Threshold(), stripes([0.05] * 9), audited(FEEBLE, STRONG, SQUARE, minimum=3)
    ).record
    assert (record.audit.hits, record.audit.escalated_to) == (3, "square")
    assert record.audit.missed_share_upper == 0
    assert record.count(Outcome.BROKEN) == 9


def test_the_audited_samples_do_not_depend_on_order() -> None:
    data = stripes([0.2 + 0.001 * i for i in range(30)])
    spec = audited(pgd("pgd", steps=1), SQUARE, minimum=10)
    forwards = evaluate(Threshold(), data, spec).table.set_index("sample_id")["forwards"]
    backwards_order = list(reversed(range(30)))
    turned = ArrayDataset(
        data.batch(backwards_order),
        data.labels[backwards_order],
        num_classes=2,
        sample_ids=[data.sample_ids[i] for i in backwards_order],
    )
    again = evaluate(Threshold(), turned, spec).table.set_index("sample_id")["forwards"]
    assert forwards.sort_index().equals(again.sort_index())


def test_too_few_classes_skip_a_stage_and_say_so() -> None:
    data = stripes([0.05, 0.3])
    stages = (
        pgd("pgd", steps=3),
        AttackSpec(name="apgd-dlr", attack="apgd", params={"loss": "dlr"}),
    )
    record = evaluate(Threshold(), data, AttackSpec(name="both", stages=stages)).record
    assert record.stages[1].skipped is not None
    assert "3 classes" in record.stages[1].skipped
    assert "stage_skipped" in {flag.name for flag in record.flags}
    assert record.count(Outcome.BROKEN) == 1


def test_an_attack_that_is_not_defined_at_all_is_refused() -> None:
    spec = AttackSpec(name="dlr", attack="apgd", params={"loss": "dlr"})
    with pytest.raises(AttackError, match="needs 3 classes"):
        evaluate(Threshold(), stripes([0.05]), spec)


class TwoHeads(nn.Module):
    """Final logits without a usable gradient, and an honest auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.final, self.auxiliary = Threshold(masked=True), Threshold()

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        return {"final": self.final(inputs), "auxiliary": [self.auxiliary(inputs)]}


def two_heads(**forward: Any) -> nn.Module:
    return wrap_module(
        TwoHeads(),
        num_classes=2,
        input={"channels": 1},
        forward={"output": ["final"], **forward},
        threat_model="Linf-0.1",
    )


AUXILIARY = AttackSpec(
    name="auxiliary", attack="pgd", output="*", params={"steps": 5, "random_start": False}
)


def test_an_attack_on_another_output_is_scored_on_the_final_one() -> None:
    data = stripes([0.02, 0.09, 0.3])
    model = two_heads(outputs={"auxiliary_0": ["auxiliary", 0]})
    blind = evaluate(model, data, pgd("pgd", steps=3, random_start=False)).record
    assert blind.count(Outcome.BROKEN) == 0
    stored = evaluate(model, data, AUXILIARY)
    assert stored.record.count(Outcome.BROKEN) == 2
    assert list(stored.table["broken_by"][:2]) == ["auxiliary_0", "auxiliary_0"]
    assert list(stored.table["adv_prediction"][:2]) == [0, 0]


def test_models_without_such_an_output_do_not_run_the_entry() -> None:
    suite = Suite(name="test", attacks=(pgd("pgd", steps=1), AUXILIARY))
    assert [spec.name for spec in suite.for_model("Linf", ())] == ["pgd"]
    assert [spec.name for spec in suite.for_model("Linf", ("auxiliary_0",))] == ["pgd", "auxiliary"]
    assert AUXILIARY.is_optional
    (stage,) = AUXILIARY.for_outputs(["other", "auxiliary_0"][1:])
    assert (stage.name, stage.output) == ("auxiliary_0", "auxiliary_0")


@pytest.mark.parametrize("suite", ["standard", "core"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_suite_calls_the_audited_protocol_autoattack(suite: str, norm: Any) -> None:
    for spec in load_suite(suite).for_norm(norm):
        assert spec.audit is None or spec.name == "aa-core"


class Picky(nn.Module):
    """Raises for bright images and returns NaN for dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Threshold()

    def forward(self, inputs: Tensor) -> Tensor:
        means = inputs.mean(dim=(1, 2, 3))
        if bool((means > 0.95).any()):
            raise RuntimeError("too bright")
        logits = self.inner(inputs)
        return torch.where((means < 0.05)[:, None], torch.nan, logits)


def test_samples_that_fail_are_errored_and_the_others_are_attacked() -> None:
    # A few samples are tried before all else: those that fail there are no reason to refuse.
    brightness = [0.98, 0.01, 0.55, 0.8]
    data = ArrayDataset(
        torch.stack([torch.full((1, 4, 4), v) for v in brightness]),
        torch.tensor([int(v > 0.5) for v in brightness]),
        num_classes=2,
    )
    stored = evaluate(Picky(), data, pgd("pgd", steps=3, random_start=False))
    outcomes = list(stored.table["outcome"])
    assert outcomes == ["errored", "errored", "broken", "survived"]
    assert "too bright" in stored.table["message"][0]
    assert "non-finite" in stored.table["message"][1]


class Hazy(SearchModel):
    """A search model that sees every margin larger by ``haze``, as low precision may."""

    def __init__(self, model: nn.Module, haze: float) -> None:
        super().__init__(model, "hazy", tolerance=haze)
        self.haze = torch.tensor([-haze / 2, haze / 2])

    def logits(self, points: Tensor) -> Tensor:
        return super().logits(points) + self.haze

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        seen = super().gradient(points, loss)
        logits = seen.logits + self.haze
        return seen._replace(logits=logits, losses=loss(logits)[0])


def cascade(
    data: ArrayDataset, spec: AttackSpec, haze: float, even: float = 0.0, save: Any = None
) -> Any:
    model = wrap_module(Threshold(), num_classes=2, input={"channels": 1}).eval()
    threat = ThreatModel.of("Linf", "0.1")
    settings = Settings(precision="fp32")
    clean = prepare_model(model, data, threat, settings, [spec])
    exact = clean.models.exact
    search = Hazy(model, haze)
    models = SearchModels(search, search, Hazy(model, even) if even else exact, exact)
    choice = replace(clean.choice, models=models, batch_size=4)
    return Cascade(
        spec, replace(clean, choice=choice, executor=ThisProcess(), shard_size=3), save=save
    )


WEAK = pgd("weak", steps=3, relative_step_size=0.4, random_start=False)
# A sample whose mean is 0.5 + m ends with the margin 20·(m − 0.1); the haze adds to it.
DISTANCES = [0.05, 0.09, 0.1 - 1e-4, 0.099, 0.105, 0.12, 0.3]


def test_survivors_near_the_boundary_are_searched_again_exactly() -> None:
    data = stripes(DISTANCES)
    run = cascade(data, WEAK, haze=0.5)
    attacked = run.run(torch.zeros(len(data), *data.input_shape))
    assert (attacked.stage >= 0).tolist() == [m < 0.1 for m in DISTANCES]
    # Seen from afar: 0.5 + 20·(m − 0.1) is more than twice the haze from m = 0.125 on.
    first, again = attacked.stages
    assert (first.name, first.search, first.attempted) == ("weak", None, 7)
    assert (again.name, again.search) == ("weak", "fp32")
    assert again.attempted == 7 - first.broken - 1
    assert first.broken + again.broken == 4
    assert int(attacked.forwards[-1]) == 4
    assert int(attacked.forwards[-2]) == 8


def test_of_several_restarts_only_those_that_came_near_are_run_again() -> None:
    data = stripes([0.11, 0.3])
    twice = pgd("twice", steps=3, relative_step_size=0.4, restarts=2)
    run = cascade(data, twice, haze=0.5)
    attacked = run.run(torch.zeros(len(data), *data.input_shape))
    first, again = attacked.stages
    assert (first.attempted, again.attempted) == (2, 1)
    near = attacked.search_margins[0] <= 2 * 0.5
    assert near.tolist() == [[True, False], [False, False]]
    # Of four searches of as many passes each, one.
    assert 4 * again.forwards == first.forwards


def test_an_attack_that_walks_along_the_boundary_sees_the_original_s() -> None:
    data = stripes(DISTANCES)
    fab = AttackSpec(name="fab", attack="fab", params={"steps": 4, "targets": 1})
    run = cascade(data, fab, haze=0.5)
    attacked = run.run(torch.zeros(len(data), *data.input_shape))
    # In the haze every margin is larger by 0.5: 0.099 would be out of reach.
    broken = (attacked.stage >= 0).tolist()
    assert (broken[0], broken[1], broken[3]) == (True, True, True)
    assert broken[4:] == [False, False, False]
    assert [(stage.search, stage.attempted) for stage in attacked.stages] == [("fp32", 7)]


def test_boundary_walks_that_ended_just_outside_are_run_again() -> None:
    """In the haze FAB stops 0.025 too far out, where nothing is in the ball to be judged."""
    data = stripes(DISTANCES)
    fab = AttackSpec(name="fab", attack="fab", params={"steps": 6, "targets": 1})
    exact_run = cascade(data, fab, haze=0.5)
    expected = exact_run.run(torch.zeros(len(data), *data.input_shape))
    run = cascade(data, fab, haze=0.5, even=0.5)
    attacked = run.run(torch.zeros(len(data), *data.input_shape))
    first, again = attacked.stages
    assert (first.search, again.search) == ("hazy", "fp32")
    assert first.broken < int((expected.stage >= 0).sum()) == 3
    assert torch.equal(attacked.stage, expected.stage)
    assert again.attempted == len(DISTANCES) - first.broken - 1  # 0.3 is far from any doubt


def test_an_exact_search_is_not_repeated() -> None:
    data = stripes(DISTANCES)
    run = cascade(data, WEAK, haze=0.0)
    assert [s.search for s in run.run(torch.zeros(len(data), *data.input_shape)).stages] == [None]


def test_an_audit_searches_again_too() -> None:
    data = stripes([0.2] * 5 + [0.1 - 1e-3] * 4)
    # The first stage cannot reach the boundary; the audited one reaches it in the haze only.
    run = cascade(data, audited(FEEBLE, STRONG, minimum=9), haze=0.5)
    attacked = run.run(torch.zeros(len(data), *data.input_shape))
    assert (attacked.stage >= 0).tolist() == [False] * 5 + [True] * 4
    assert attacked.audit is not None
    assert (attacked.audit.hits, attacked.audit.escalated) == (4, True)


def test_what_a_stage_finds_when_it_is_searched_again_is_the_stage_s() -> None:
    """In the haze FAB stops 0.025 too far out; searched again exactly, it is in the ball."""
    data = stripes([0.2] * 5 + [0.1 - 1e-3] * 4)
    fab = AttackSpec(name="fab", attack="fab", params={"steps": 6, "targets": 1})
    last = FEEBLE.model_copy(update={"name": "last"})
    run = cascade(data, audited(FEEBLE, fab, last, minimum=6), haze=0.5, even=0.5)
    attacked = run.run(torch.zeros(len(data), *data.input_shape))
    hits = attacked.audit.hits
    assert (0 < hits < 4, attacked.audit.escalated_to) == (True, "fab")
    found = [(s.name, s.search, s.attempted, s.broken) for s in attacked.stages]
    assert found == [
        ("feeble", None, 9, 0),
        ("fab", "hazy", 6, 0),
        ("last", None, 6, 0),
        ("fab", "fp32", hits, hits),
        ("fab", "hazy", 3, 0),
        ("fab", "fp32", 4 - hits, 4 - hits),
    ]


@pytest.mark.parametrize(
    "every", [pytest.param(14, id="some"), pytest.param(1, id="each", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("minimum", "more"),
    one_at_a_time([4, 0], [(pgd("last", steps=1, relative_step_size=0.1),), ()]),
)
def test_a_cascade_stopped_anywhere_goes_on_to_the_same_end(
    minimum: int, more: tuple[AttackSpec, ...], every: int
) -> None:
    data = stripes([0.2] * 3 + DISTANCES)
    spec = AttackSpec(name="both", stages=(WEAK, pgd("strong", steps=2), *more))
    if minimum:
        spec = audited(FEEBLE, WEAK, *more, minimum=minimum)
    snapshots: list[Any] = []

    def keep(snapshot: Any) -> None:
        buffer = io.BytesIO()
        torch.save(snapshot(), buffer)
        snapshots.append(buffer)

    run = cascade(data, spec, haze=0.5, save=keep)
    expected = run.run(torch.zeros(len(data), *data.input_shape))
    assert len(snapshots) > 12
    if minimum:
        assert expected.audit.escalated_to == "weak"
        assert [s.name for s in expected.stages].count("last") == len(more)
    for buffer in {*snapshots[::every], snapshots[-1]}:
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        run = cascade(data, spec, haze=0.5)
        attacked = run.run(torch.zeros(len(data), *data.input_shape), saved)
        assert torch.equal(attacked.stage, expected.stage)
        assert torch.equal(attacked.adv_inputs, expected.adv_inputs)
        assert torch.equal(attacked.forwards, expected.forwards)
        assert attacked.audit == expected.audit
        names = [(s.name, s.search) for s in attacked.stages]
        assert names == [(s.name, s.search) for s in expected.stages]
