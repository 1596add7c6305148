"""The key determines the numbers: one job, one record, whatever it is called and however it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attack_models import TinyCNN, images, predictions
from torch import Tensor, nn

import robench
from robench.attacks import catalogue
from robench.datasets import ArrayDataset, Dataset
from robench.evaluation import prepared_model
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import code_from_outside, key_of
from robench.models import wrap_module
from robench.records import AttackSpec, Suite, job_key
from robench.reporting.leaderboard import attack_column, build_leaderboard
from robench.reporting.model_results import collect
from robench.results import Store
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

THREAT = ThreatModel.of("Linf", "0.05")
MODEL = wrap_module(TinyCNN(), num_classes=6, input={"channels": 1}, threat_model=THREAT)
INPUTS = images(150, seed=1)
DATA = ArrayDataset(INPUTS, predictions(TinyCNN(), INPUTS), num_classes=6)


def suite(name: str, *columns: str, **params: Any) -> Suite:
    """PGD from random starts, a column for each name."""
    attacks = (
        AttackSpec(name=column, attack="pgd", params={"steps": 3, **params}) for column in columns
    )
    return Suite(name=name, attacks=tuple(attacks))


def evaluate(results: Path, chosen: Suite, **options: Any) -> Any:
    options = {"n": 12, "device": "cpu", **options}
    return robench.evaluate(MODEL, DATA, chosen, results=results, **options)


def outcomes(stored: Any) -> Any:
    return stored.table.drop(columns="broken_by")


def test_an_attack_by_two_names_is_one_record_with_the_same_draws(tmp_path: Path) -> None:
    ours, mine = suite("ours", "pgd-a"), suite("mine", "pgd-b")
    (first,) = evaluate(tmp_path / "one", ours)
    (second,) = evaluate(tmp_path / "one", mine)
    (elsewhere,) = evaluate(tmp_path / "two", mine)
    assert len(Store(tmp_path / "one").keys()) == 1
    assert first.record.key == second.record.key == elsewhere.record.key
    # Made anew under the other name, it is the same, bit for bit; and it is shown under that name.
    assert outcomes(elsewhere).equals(outcomes(first))
    assert second.table.equals(elsewhere.table)
    assert second.record.attack.name == "pgd-b"
    assert set(second.table["broken_by"].dropna()) == {"pgd-b"}
    assert set(first.table["broken_by"].dropna()) == {"pgd-a"}


def test_every_suite_finds_its_column_in_the_leaderboard(tmp_path: Path) -> None:
    evaluate(tmp_path, suite("ours", "pgd-a"))
    records = list(Store(tmp_path).records())
    for chosen in (suite("mine", "pgd-b"), suite("both", "pgd-b", "pgd-c")):
        (result,) = collect(records, suite=chosen)
        assert set(result.attacks) == {spec.name for spec in chosen.attacks}
        row = build_leaderboard(records, suite=chosen).iloc[0]
        assert "missing" not in str(row["validity"])
        assert row[attack_column("pgd-b")] == row["robust_acc"]
    assert collect(records, suite=suite("other", "pgd-a", restarts=2)) == []


def test_one_suite_may_call_an_attack_by_two_names(tmp_path: Path) -> None:
    first, second = evaluate(tmp_path, suite("twice", "pgd-a", "pgd-b"))
    assert [first.record.attack.name, second.record.attack.name] == ["pgd-a", "pgd-b"]
    assert first.record.key == second.record.key


def test_a_record_of_one_precision_is_not_returned_for_another(tmp_path: Path) -> None:
    chosen = suite("ours", "pgd-a")
    (auto,) = evaluate(tmp_path, chosen)
    (exact,) = evaluate(tmp_path, chosen, precision="fp32")
    (again,) = evaluate(tmp_path, chosen, precision="fp32")
    assert auto.record.precision == "auto"
    assert exact.record.precision == again.record.precision == "fp32"
    assert len({auto.record.key, exact.record.key, again.record.key}) == 2
    assert again.record.created == exact.record.created


def test_the_key_follows_from_what_the_record_says(tmp_path: Path) -> None:
    (stored,) = evaluate(tmp_path, suite("ours", "pgd-a"), seed=3)
    record = stored.record
    assert record.key == job_key(
        model=record.model.fingerprint,
        dataset=record.dataset,
        threat_model=record.threat_model,
        attack=record.attack,
        seed=record.seed,
        precision=record.precision or "",
        foreign=record.foreign,
    )


def _key(attack: str, dataset: Dataset | None = None) -> str:
    spec = AttackSpec(name="a", attack=attack)
    return key_of(MODEL, (dataset or DATA).spec(), ThreatModel.of("L2", "1"), spec, Settings())


@pytest.mark.parametrize("attack", ["art:CarliniL2Method", "pyautoattack:standard"])
def test_the_version_of_a_foreign_library_is_in_the_key(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = _key("cw-l2"), _key(attack)
    assert _key(attack) == theirs
    monkeypatch.setattr(catalogue, "installed_versions", lambda name: {name: "99.0"})
    assert _key(attack) != theirs
    assert _key("cw-l2") == ours


class Masked(ArrayDataset):
    """A data set that says where its objects are."""

    corner: int = 2

    def _read_masks(self, indices: list[int]) -> Tensor:
        masks = torch.zeros(len(indices), *self.input_shape[1:], dtype=torch.bool)
        masks[:, : self.corner, : self.corner] = True
        return masks


def test_masks_are_in_the_key_and_names_are_not() -> None:
    inputs, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    plain = ArrayDataset(inputs, labels, num_classes=10)
    small, large = (Masked(inputs, labels, num_classes=10) for _ in range(2))
    large.corner = 3
    keys = [_key("pgd", data) for data in (plain, small, large)]
    assert len(set(keys)) == 3
    assert plain.fingerprint == small.fingerprint
    renamed = ArrayDataset(
        inputs, labels, num_classes=10, name="renamed", sample_ids=plain.sample_ids
    )
    assert _key("pgd", renamed) == keys[0]


class Batches:
    """A foreign attack whose proposals depend on how many samples it is given at a time."""

    def __init__(self, threat_model: ThreatModel, *, name: str = "batches") -> None:
        self.name, self.threat_model = name, threat_model

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        return (inputs + 1e-3 * len(inputs)).clamp(0, 1)


def test_workers_do_not_decide_how_many_samples_a_foreign_attack_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_model, "_SHARD_VALUES", 0)  # 64 samples at a time
    spec = AttackSpec(name="batches", attack=f"{__name__}:Batches")
    chosen = Suite(name="foreign", attacks=(spec,))
    assert list(code_from_outside(spec, MODEL)) == [spec.attack]
    tables = []
    for workers in (1, 3):
        results = tmp_path / str(workers)
        (stored,) = evaluate(results, chosen, n=150, workers=workers)
        tables.append(stored.table)
    assert tables[0].equals(tables[1])
