"""Corruptions through the engine: every sample is judged under each, whatever came of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from attack_models import ExactNetwork, images, predictions

from robench.attacks import build_attack
from robench.attacks.corruptions import Corruptions
from robench.corruptions import corrupt, corruptions_for
from robench.datasets import ArrayDataset
from robench.datasets.base import Subset
from robench.errors import AttackError, UnknownNameError, UsageError
from robench.evaluation.merging import merge_all
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import evaluate_model
from robench.models import wrap_module
from robench.preparation import prepare
from robench.records import AttackSpec, Outcome, Suite
from robench.records.corruptions import CORRECT, SEVERITIES, trial_name
from robench.request import Part, Request
from robench.results import Store
from robench.results.consistency import check_consistency
from robench.seeding import sample_keys
from robench.threat_models import ThreatModel

N = 14
ONLY = "gaussian_noise,fog,glass_blur,contrast"
THREAT = ThreatModel.corruptions()


def suite(**params: Any) -> Suite:
    spec = AttackSpec(
        name="corruptions",
        attack="corruptions",
        norms=("corruptions",),
        params={"only": ONLY, **params},
    )
    return Suite(name="some-corruptions", attacks=(spec,))


class Problem:
    """An exact network, some of whose samples are misclassified as they are."""

    def __init__(self) -> None:
        inputs = images(N, seed=1)
        labels = predictions(ExactNetwork(), inputs)
        labels[::5] = (labels[::5] + 1) % 6
        self.data = ArrayDataset(inputs, labels, num_classes=6)
        self.model = wrap_module(
            ExactNetwork(),
            num_classes=6,
            input={"channels": 1},
            threat_model=ThreatModel.of("Linf", "0.02"),
            name="net",
        )

    def run(self, folder: Path, part: Part | None = None, **given: Any) -> Store:
        settings = Settings(**{"precision": "fp32", "batch_size": 64, "workers": 1} | given)
        evaluate_model(
            self.model,
            self.data,
            suite(),
            store=Store(folder),
            threat_model=THREAT,
            settings=settings,
            part=part,
        )
        return Store(folder)


@pytest.fixture(scope="module")
def problem(unexamined: None) -> Problem:
    return Problem()


@pytest.fixture(scope="module")
def whole(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return problem.run(tmp_path_factory.mktemp("whole"))


def table_of(store: Store) -> pd.DataFrame:
    (stored,) = store.records()
    return stored.table.sort_values("sample_id", ignore_index=True)


def test_every_sample_is_judged_under_every_corruption(problem: Problem, whole: Store) -> None:
    data, network = problem.data, ExactNetwork()
    table = table_of(whole).set_index("sample_id").loc[list(data.sample_ids)]
    inputs, keys = data.batch(range(N)), sample_keys(0, data.sample_ids)
    worst = torch.full((N,), torch.inf)
    for name in ONLY.split(","):
        for severity in SEVERITIES:
            logits = network(corrupt(inputs, keys, name, severity))
            right = logits.argmax(dim=1) == data.labels
            column = table[CORRECT + trial_name(name, severity)]
            assert column.tolist() == right.float().tolist(), (name, severity)
            rivals = logits.scatter(1, data.labels[:, None], -torch.inf).amax(dim=1)
            own = logits.gather(1, data.labels[:, None]).squeeze(1) - rivals
            worst = torch.minimum(worst, own)
    clean = (predictions(network, inputs) == data.labels).numpy()
    assert (table["outcome"] == Outcome.CLEAN_ERROR).tolist() == (~clean).tolist()
    assert table["adv_margin"][clean].tolist() == pytest.approx(worst[clean].tolist())
    broken = table["outcome"] == Outcome.BROKEN
    assert broken[clean].tolist() == (worst[clean] < 0).tolist()
    assert table["adv_margin"][~clean].isna().all()
    assert (table["forwards"] == 20).all()


def test_the_record_agrees_with_itself_and_has_no_stages(whole: Store) -> None:
    (stored,) = whole.records()
    check_consistency(stored)
    assert str(stored.record.threat_model) == "corruptions-generated"
    assert stored.record.threat_model.goal == "corrupted"
    assert stored.record.stages == ()
    assert ThreatModel.parse("corruptions-generated") == THREAT


def test_saturation_is_left_out_of_grey_images(problem: Problem) -> None:
    assert set(corruptions_for(1)) == set(Corruptions(THREAT).chosen) - {"saturate"}
    attack = Corruptions(THREAT, only="saturate")
    assert attack.trial(0, problem.data.batch([0]), sample_keys(0, ["a"])) is None
    assert attack.trial(0, torch.rand(1, 3, 8, 8), sample_keys(0, ["a"])) is not None


@pytest.mark.parametrize("given", [{"batch_size": 3}, {"workers": 2}], ids=["batch", "workers"])
def test_batches_and_workers_change_nothing(
    problem: Problem, whole: Store, tmp_path: Path, given: dict[str, Any]
) -> None:
    pd.testing.assert_frame_equal(table_of(problem.run(tmp_path, **given)), table_of(whole))


def test_shards_make_the_whole(problem: Problem, whole: Store, tmp_path: Path) -> None:
    stores = [problem.run(tmp_path / str(i), Part(i, 3)) for i in (1, 2, 3)]
    joined, problems = merge_all(stores, Store(tmp_path / "joined"))
    assert not problems
    assert len(joined) == 1
    pd.testing.assert_frame_equal(table_of(Store(tmp_path / "joined")), table_of(whole))


def test_the_order_of_the_samples_changes_nothing(
    problem: Problem, whole: Store, tmp_path: Path
) -> None:
    other = Problem()
    other.data = Subset(problem.data, list(reversed(range(N))))
    table = table_of(other.run(tmp_path))
    pd.testing.assert_frame_equal(table, table_of(whole))


def test_an_interrupted_run_goes_on_to_the_same_record(
    problem: Problem, whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, made = Corruptions.trial, []

    def stops(self: Corruptions, number: int, *others: Any) -> Any:
        made.append(number)
        if len(made) == 12:
            raise KeyboardInterrupt
        return trial(self, number, *others)

    monkeypatch.setattr(Corruptions, "trial", stops)
    with pytest.raises(KeyboardInterrupt):
        problem.run(tmp_path, snapshot_seconds=0.0)
    problem.run(tmp_path, snapshot_seconds=0.0)
    assert made == [*range(12), *range(11, 20)]
    pd.testing.assert_frame_equal(table_of(Store(tmp_path)), table_of(whole))


def test_where_the_model_fails_the_sample_errs_and_is_not_correct(
    problem: Problem, tmp_path: Path
) -> None:
    class Fails(ExactNetwork):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            flat = inputs.flatten(1)
            grey = (flat.amax(dim=1) - flat.amin(dim=1) < 0.5)[:, None]
            return torch.where(grey, torch.nan, super().forward(inputs))

    other = Problem()
    other.model = wrap_module(
        Fails(), num_classes=6, input={"channels": 1}, threat_model=THREAT, name="fails"
    )
    table = table_of(other.run(tmp_path))
    assert (table["outcome"] == Outcome.ERRORED).any()
    assert table["message"].dropna().str.contains("contrast_").all()
    assert (table[f"{CORRECT}contrast_5"][table["outcome"] == Outcome.ERRORED] == 0).all()
    (stored,) = Store(tmp_path).records()
    assert "errored_samples" in {flag.name for flag in stored.record.flags}


def test_parameters_that_make_no_sense() -> None:
    with pytest.raises(UnknownNameError, match="frog"):
        Corruptions(THREAT, only="frog")
    with pytest.raises(UnknownNameError, match="svhn"):
        Corruptions(THREAT, constants="svhn")
    with pytest.raises(AttackError, match="stay in no ball such as Linf-8/255"):
        build_attack(AttackSpec(name="c", attack="corruptions"), ThreatModel.parse("Linf-8/255"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"suite": "corruptions", "norm": "Linf", "eps": "0.1"}, "no adversary"),
        ({"suite": "corruptions", "goal": "targeted", "targets": "next"}, "no adversary"),
        ({"suite": ["quick", "corruptions"]}, "which no number joins"),
        ({"suite": "quick", "goal": "corrupted"}, "has no corruptions"),
        ({"suite": "corruptions", "settings": {"corruptions.only": "frog"}}, "frog"),
    ],
)
def test_requests_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=said):
        prepare(Request(models=("pgd-at",), dataset="digits", n=2, **fields))


def test_an_attack_is_no_corruption() -> None:
    entry = AttackSpec(name="pgd", attack="pgd", norms=("corruptions",))
    with pytest.raises(UsageError, match="pgd is no entry of its own for corruptions"):
        prepare(Request(models=("pgd-at",), n=2, suite=Suite(name="s", attacks=(entry,))))
