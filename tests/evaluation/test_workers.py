"""Searches side by side: the same results, whole snapshots, and failures that reach the caller."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.cascade import Cascade
from robench.evaluation.clean_pass import CleanPass
from robench.evaluation.search_models import EagerModel
from robench.evaluation.settings import Settings
from robench.evaluation.workers import Worker, worker_count
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.threat_models import ThreatModel

N = 40
THREAT = ThreatModel.of("Linf", "0.02")
CPU = torch.device("cpu")
SPEC = AttackSpec(
    name="three",
    stages=(
        AttackSpec(name="pgd", attack="pgd", params={"steps": 3}),
        AttackSpec(
            name="apgd-t", attack="apgd", params={"loss": "dlr-targeted", "steps": 6, "targets": 3}
        ),
        AttackSpec(name="square", attack="square", params={"queries": 20}),
    ),
)


def problem(network: nn.Module | None = None) -> tuple[RobenchModel, ArrayDataset]:
    exact = ExactNetwork()
    inputs = images(N, seed=1)
    data = ArrayDataset(inputs, predictions(exact, inputs), num_classes=6)
    model = wrap_module(network or exact, num_classes=6, input={"channels": 1}, threat_model=THREAT)
    return model.eval(), data


def cascade(workers: int, save: Any = None, **options: Any) -> tuple[CleanPass, Cascade]:
    model, data = problem(options.pop("network", None))
    clean = CleanPass(model, data, THREAT, Settings(precision="fp32", batch_size=12), [SPEC])
    run = Cascade(
        SPEC,
        model,
        THREAT,
        clean.search_model,
        clean.adjudicator,
        batch_size=12,
        shard_size=N,
        workers=workers,
        seed=0,
        save=save,
        **options,
    )
    return clean, run


def results(attacked: Any) -> dict[str, Any]:
    counted = ("name", "attempted", "broken", "errored", "forwards", "backwards")
    return {
        "stage": attacked.stage.tolist(),
        "points": attacked.adv_inputs[torch.arange(len(attacked.stage))].tolist(),
        "margins": attacked.closest_margin.tolist(),
        "forwards": attacked.forwards.tolist(),
        "stages": [tuple(getattr(s, name) for name in counted) for s in attacked.stages],
        "flags": [flag.name for flag in attacked.flags],
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    clean, run = cascade(1)
    found = results(run.run(clean, (1, 6, 6)))
    assert {-1, 0} < set(found["stage"])
    return found


@pytest.mark.parametrize("workers", [2, 3, 50])
def test_the_number_of_workers_changes_no_result(workers: int, expected: dict[str, Any]) -> None:
    steps: list[int] = []
    clean, run = cascade(workers, progress=steps.append)
    assert len(run.workers) == min(workers, 12)
    found = results(run.run(clean, (1, 6, 6)))
    for name in ("stage", "points", "margins", "flags"):
        assert found[name] == expected[name], name
    # Which searches ran beside the deciding one depends on the batch; what is attempted does not.
    assert [s[:4] for s in found["stages"]] == [s[:4] for s in expected["stages"]]
    assert sum(steps) == sum(run._stage_steps(a, n, 6) for a, n in _attempts(run, found))


def _attempts(run: Cascade, found: dict[str, Any]) -> list[tuple[Any, int]]:
    return [(a, s[1]) for a, s in zip(run.attacks, found["stages"], strict=True)]


@pytest.mark.parametrize("workers_after", [1, 2, 3])
def test_a_snapshot_of_several_engines_goes_on_anywhere(
    workers_after: int, expected: dict[str, Any]
) -> None:
    kept: list[bytes] = []

    def keep(make: Any) -> None:
        file = io.BytesIO()
        torch.save(make(), file)
        kept.append(file.getvalue())

    clean, run = cascade(3, save=keep)
    run.run(clean, (1, 6, 6))
    several = 0
    for content in kept[:: max(1, len(kept) // 12)]:
        saved = torch.load(io.BytesIO(content), weights_only=True)
        several += len(saved["engines"]) > 1
        clean, run = cascade(workers_after)
        found = results(run.run(clean, (1, 6, 6), saved))
        for name in ("stage", "points", "margins", "flags"):
            assert found[name] == expected[name], name
        assert [s[:4] for s in found["stages"]] == [s[:4] for s in expected["stages"]]
    assert several > 1


class _InterruptedError(Exception):
    """Raised in one worker's thread."""


def test_what_one_worker_raises_stops_all_and_leaves_a_whole_snapshot(
    expected: dict[str, Any],
) -> None:
    calls = 0
    latest: list[Any] = []

    def fail_late(make: Any) -> None:
        nonlocal calls
        calls += 1
        latest[:] = [make]
        if calls == 25:
            raise _InterruptedError

    clean, run = cascade(3, save=fail_late)
    with pytest.raises(_InterruptedError):
        run.run(clean, (1, 6, 6))
    assert calls == 25
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]
    file = io.BytesIO()
    torch.save(latest[0](), file)
    file.seek(0)
    clean, run = cascade(2)
    found = results(run.run(clean, (1, 6, 6), torch.load(file, weights_only=True)))
    assert (found["stage"], found["points"]) == (expected["stage"], expected["points"])


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    seen: set[int] = set()

    class Noting(ExactNetwork):
        def forward(self, inputs: Tensor) -> Tensor:
            if threading.current_thread() is not threading.main_thread():
                seen.add(torch.get_num_threads())
            return super().forward(inputs)

    try:
        clean, run = cascade(2, network=Noting())
        run.run(clean, (1, 6, 6))
        assert seen == {2}
        assert torch.get_num_threads() == 4
        fresh: list[int] = []
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert fresh == [4]
    finally:
        torch.set_num_threads(before)


class Remembering(ExactNetwork):
    """Keeps its hidden layer on itself between two lines, as many published networks do."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.kept = (inputs.flatten(1).double() @ self.first - self.shift).float().relu()
        count = len(inputs)
        for _ in range(20):  # time for another thread to come in between
            torch.arange(1000).sum()
        assert len(self.kept) == count
        return (self.kept.double() @ self.second).float()


def test_modules_that_keep_things_on_themselves_do_not_meet(expected: dict[str, Any]) -> None:
    clean, run = cascade(3, network=Remembering())
    attacked = run.run(clean, (1, 6, 6))
    assert attacked.errors == {}
    assert results(attacked)["points"] == expected["points"]


def test_twins_share_tensors_and_nothing_else() -> None:
    model, _ = problem()
    plain = EagerModel(model)
    worker = Worker(model, plain, plain, Adjudicator(model, THREAT))
    twin = worker.twin()
    assert twin.model is not model
    assert twin.search is twin.exact
    assert twin.search.modules() == (twin.model,)
    assert twin.adjudicator.model is twin.model
    for mine, theirs in zip(model.buffers(), twin.model.buffers(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()


class Uncopyable(ExactNetwork):
    """Can be copied into its wrapper, where it gets something that cannot."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopyable:
        if hasattr(self, "lock"):
            raise TypeError("cannot pickle a lock")
        copied = Uncopyable()
        copied.lock = threading.Lock()
        return copied


def test_what_cannot_be_copied_is_searched_by_one(expected: dict[str, Any]) -> None:
    clean, run = cascade(3, network=Uncopyable())
    assert len(run.workers) == 1
    assert results(run.run(clean, (1, 6, 6)))["points"] == expected["points"]


class Drawing(ExactNetwork):
    """A randomised defense: its draws come from one stream, whose order must not be left to luck."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward((inputs + 0.01 * torch.randn_like(inputs)).clamp(0, 1))


class Counting(ExactNetwork):
    """Changes a buffer with every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(inputs)


@pytest.mark.parametrize("network, alone", [(Drawing, True), (Counting, True), (None, False)])
def test_passes_that_must_not_overlap_have_one_worker(network: Any, alone: bool) -> None:
    model, data = problem(None if network is None else network())
    settings = Settings(precision="fp32", workers=3)
    clean = CleanPass(model, data, THREAT, settings, [SPEC])
    assert clean.workers == (1 if alone else 3)


def test_as_many_as_threads_but_only_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, workers in ((1, 1), (2, 2), (4, 4), (64, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert worker_count(CPU, None) == workers
        assert worker_count(torch.device("cuda"), None) == 1
        assert worker_count(CPU, 7) == 7


def test_from_python() -> None:
    model, data = problem()
    suite = Suite(name="three", attacks=(SPEC,))
    tables = [
        robench.evaluate(
            model, data, suite, device="cpu", precision="fp32", batch_size=12, workers=workers
        )[0].table
        for workers in (1, 2)
    ]
    for column in ("outcome", "broken_by", "adv_margin", "perturbation_size"):
        assert list(tables[0][column].astype(str)) == list(tables[1][column].astype(str)), column
