"""Jobs in parts on a cluster that is this process: one record, whatever comes between."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

from robench.datasets import ArrayDataset
from robench.errors import ExecutionError, ModelError
from robench.evaluation import sent_jobs
from robench.evaluation.distribution import Distribution
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import Listener, evaluate_model
from robench.execution import Progress, Save
from robench.execution.ray_cluster import RayCluster
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.results import Store, StoredRecord
from robench.results.parts import divisions
from robench.threat_models import ThreatModel

N = 16
THREAT = ThreatModel.of("Linf", "0.02")
PGD = AttackSpec(name="pgd", attack="pgd", params={"steps": 3})
SUITE = Suite(
    name="two",
    attacks=(
        PGD,
        AttackSpec(
            name="both",
            stages=(PGD, AttackSpec(name="sq", attack="square", params={"queries": 8})),
        ),
    ),
)
SETTINGS = Settings(precision="fp32", batch_size=16, workers=1, save_adversarial=True)


@dataclass(frozen=True)
class Cluster(RayCluster):
    """Calls are made here, with what was sent as it arrives elsewhere: copied, arrays read-only."""

    size: int = 1
    count: int = 3
    """Parts of a job"""
    disturb: Callable[[list[str]], None] = lambda calls: None
    calls: list[str] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def parts(self, n: int, share: float, least: int) -> int:
        return self.count

    def put(self, value: Any) -> bytes:
        self.sent.append(pickle.dumps(value))
        return self.sent[-1]

    def call(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        progress: Progress,
        save: Save,
        what: str,
    ) -> Any:
        self.calls.append(what)
        self.disturb(self.calls)
        save(dict)
        received = [pickle.loads(a) if isinstance(a, bytes) else a for a in arguments]
        for array in received:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        return function(progress, *received)


class Told(Listener):
    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.steps = 0

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        self.said.append((attack, cached))

    def advanced(self, steps: int) -> None:
        self.steps += steps

    def job_finished(self, stored: StoredRecord) -> None:
        self.said.append((stored.record.attack.name, stored.record.n))

    def model_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        self.said.append((model, len(records)))


def model(network: nn.Module | None = None) -> RobenchModel:
    return wrap_module(
        network or ExactNetwork(), num_classes=6, input={"channels": 1}, threat_model=THREAT
    )


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    inputs = images(N, seed=1)
    labels = predictions(ExactNetwork(), inputs)
    labels[::9] = 0
    return ArrayDataset(inputs, labels, num_classes=6)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_jobs, "_BLOCK_BYTES", 7 * 4 * 36)


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor is not asked: the network is known."""
    monkeypatch.setattr("robench.evaluation.prepared_model.examine", lambda *_, **__: [])


@pytest.fixture(scope="module")
def whole(data: ArrayDataset, tmp_path_factory: pytest.TempPathFactory) -> list[StoredRecord]:
    store = Store(tmp_path_factory.mktemp("whole"))
    return evaluate_model(model(), data, SUITE, store=store, settings=SETTINGS)


def distribution(folder: Path, cluster: Cluster, **options: Any) -> Distribution:
    given: dict[str, Any] = {"suite": SUITE, "settings": SETTINGS, **options}
    return Distribution(cluster, store=Store(folder), **given)


def content(stored: StoredRecord) -> dict[str, Any]:
    """All but times and passes."""
    record = stored.record.model_dump(exclude={"cost", "created", "environment", "stages"})
    table = stored.table.drop(columns=["forwards", "backwards"])
    return {"record": record, "table": table.to_dict("list").__repr__()}


def adversarial(stored: StoredRecord) -> Any:
    assert stored.path is not None
    return Store(stored.path.parents[2]).adversarial_rows(stored.record.key)[np.arange(N)]


@pytest.mark.parametrize("shards", [None, 1, pytest.param(8, marks=pytest.mark.slow)])
def test_one_record_comes_of_any_number_of_parts(
    shards: int | None, data: Any, whole: list[StoredRecord], tmp_path: Path, sound: None
) -> None:
    cluster, told = Cluster(), Told()
    jobs = distribution(tmp_path, cluster, listener=told, shards=shards)
    found = jobs.run([(model(), THREAT, data)])
    assert [content(stored) for stored in found] == [content(stored) for stored in whole]
    assert len(cluster.calls) == 2 * (shards or 3)
    assert len(cluster.sent) == 2 + 3  # the model, the samples' names, and three blocks of pixels
    assert told.said[-1] == ("model", 2)
    assert ("both", False) in told.said
    assert told.steps > 0
    for stored, other in zip(found, whole, strict=True):
        mine, theirs = (adversarial(item) for item in (stored, other))
        assert np.array_equal(mine, theirs)
    assert divisions([Store(tmp_path)]) == []  # joined parts are gone
    # The next run finds all of it.
    again = Cluster()
    distribution(tmp_path, again).run([(model(), THREAT, data)])
    assert again.calls == []
    assert again.sent == []


def test_an_interrupted_run_goes_on_with_what_is_missing(
    data: Any, whole: list[StoredRecord], tmp_path: Path, sound: None
) -> None:
    def interrupt(calls: list[str]) -> None:
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distribution(tmp_path, Cluster(disturb=interrupt)).run([(model(), THREAT, data)])
    # Whatever the size of another cluster, parts stay those that were begun.
    again = Cluster(count=5)
    found = distribution(tmp_path, again).run([(model(), THREAT, data)])
    assert len(again.calls) == 2
    assert [content(stored) for stored in found] == [content(stored) for stored in whole]


def test_a_job_that_fails_leaves_the_others_alone(data: Any, tmp_path: Path, sound: None) -> None:
    def fail(calls: list[str]) -> None:
        if "pgd on" in calls[-1] and "part 2" in calls[-1]:
            raise ExecutionError(f"{calls[-1]} died 3 times")

    cluster, told = Cluster(disturb=fail), Told()
    with pytest.raises(ExecutionError, match="part 2 of 3 died 3 times"):
        distribution(tmp_path, cluster, listener=told).run([(model(), THREAT, data)])
    assert ("both", N) in told.said
    assert len(cluster.calls) == 2 + 3  # the third part of what has failed is not begun
    (begun,) = divisions([Store(tmp_path)])
    assert begun.missing == [2, 3]


class _Drawing(ExactNetwork):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward((inputs + 0.01 * torch.randn_like(inputs)).clamp(0, 1))


def test_what_cannot_be_divided_goes_as_a_whole(data: Any, tmp_path: Path) -> None:
    cluster = Cluster()
    one = Suite(name="one", attacks=(PGD,))
    alone = evaluate_model(
        model(_Drawing()), data, one, store=Store(tmp_path / "alone"), settings=SETTINGS
    )
    jobs = distribution(tmp_path / "all", cluster, suite=one)
    found = jobs.run([(model(_Drawing()), THREAT, data)])
    assert [content(stored) for stored in found] == [content(stored) for stored in alone]
    assert [what.rpartition(", ")[2] for what in cluster.calls] == ["part 1 of 3", "all samples"]


def test_a_model_that_cannot_be_sent_is_refused(data: Any, tmp_path: Path) -> None:
    unsent = model()
    unsent.network.hook = lambda: None  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be sent to other processes"):
        distribution(tmp_path, Cluster()).run([(unsent, THREAT, data)])
    assert Store(tmp_path).keys() == []
