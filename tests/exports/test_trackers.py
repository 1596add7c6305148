"""What experiment trackers are told of records, once each."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from fake_trackers import fake_mlflow, fake_tensorboard
from invoke_cli import invoke
from record_factory import make_record, make_samples, make_stored

from robench.errors import MissingDependencyError, StoreError, UnknownNameError
from robench.exports.mlflow_runs import MlflowRuns
from robench.exports.tensorboard import TensorBoard
from robench.exports.trackers import about, figures, log_records, trackers
from robench.records import MetricSummary
from robench.results import Store, StoredRecord
from robench.statistics import wilson


@pytest.fixture
def stored(tmp_path: Path) -> StoredRecord:
    samples = make_samples("CSSBBBSSSE")
    return Store(tmp_path / "results").write(make_record(samples), samples)


def test_figures_are_the_records_and_undefined_ones_are_left_out() -> None:
    metrics = {
        "attention_deviation": MetricSummary(mean=0.25),
        "alignment": MetricSummary(mean=None),
    }
    found = figures(make_stored("CSSBBBSSSE", metrics=metrics))
    share = wilson(5, 10).scaled(100)
    assert found["robust_acc"] == 50
    assert (found["robust_acc_low"], found["robust_acc_high"]) == (share.low, share.high)
    assert (found["survived"], found["broken"], found["errored"], found["clean_error"]) == (
        5,
        3,
        1,
        1,
    )
    assert found["attention_deviation"] == 0.25
    assert "alignment" not in found
    assert all(map(math.isfinite, found.values()))


def test_with_targets_it_is_what_was_reached() -> None:
    record = make_stored("SSBC", threat="Linf-0.2-targeted-next", values={"target": [1, 0, 1, 0]})
    found = figures(record)
    assert found["targeted_success"] == pytest.approx(100 / 3)
    assert "robust_acc" not in found
    assert about(record)["targets"] == "next"


def test_mlflow_has_a_run_for_each_record_and_none_twice(
    stored: StoredRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_mlflow(monkeypatch)
    found = trackers(["mlflow"], tmp_path)
    assert log_records(found, [stored]) == ["1 records told to mlflow: http://tracking:5000"]
    assert log_records(found, [stored])[0].startswith("0 records told to mlflow, 1 were there")
    (run,) = fake.runs
    assert fake.experiment == "robench"
    assert run["name"] == "toy pgd-20 Linf-0.2"
    assert run["params"]["key"] == stored.record.key
    assert run["metrics"]["robust_acc"] == 50
    name, table = run["table"]
    assert (name, len(table)) == ("samples.json", 10)
    assert ("record", f"{stored.record.key}.json") in run["artifacts"]
    assert {Path(file).suffix for _, file in run["artifacts"]} == {".json", ".parquet"}


def test_a_run_that_failed_is_made_again(
    stored: StoredRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = fake_mlflow(monkeypatch)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    fake.broken = "nobody answers\nat all"
    with pytest.raises(StoreError, match="mlflow fails: ConnectionError: nobody answers at all"):
        log_records(trackers(["mlflow"], tmp_path), [stored])
    fake.broken = ""
    assert MlflowRuns(tmp_path).log(stored)
    assert [run["status"] for run in fake.runs] == ["FAILED", "FINISHED"]
    assert fake.experiment == "Default"


def test_within_a_run_of_the_users_it_is_nested(
    stored: StoredRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = fake_mlflow(monkeypatch)
    with fake.start_run("mine", False, {"robench.key": "none"}):
        assert MlflowRuns(tmp_path).log(stored)
    assert [run["name"] for run in fake.runs] == ["mine", "toy pgd-20 Linf-0.2"]


def test_tensorboard_is_written_anew(
    stored: StoredRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = fake_tensorboard(monkeypatch)
    board = TensorBoard(tmp_path / "board")
    for _ in range(2):
        (run,) = board.write(stored)
        assert len(list(run.iterdir())) == 1
    assert told[f"{run.name}/survived"] == [(0, 5), (0, 5)]
    assert "| seed | 0 |" in told[f"{run.name}/record"][0]
    hostile = make_stored("SB", model="../../a|b")
    (run,) = board.write(hostile)
    assert run.parent == tmp_path / "board"
    assert "a\\|b" in told[f"{run.name}/record"][0]


@pytest.mark.parametrize(
    "name, module", [("mlflow", "mlflow"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_what_is_not_installed_is_named(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"robench\[{name}\]"):
        trackers([name], tmp_path)


def test_an_unknown_tracker_is_refused_before_any_attack(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'mlflow'"):
        trackers(["mlfow"], tmp_path)
    done = invoke("run", "pgd-at", "--log", "tensorbord", "--results", tmp_path / "r")
    assert (done.code, "Did you mean 'tensorboard'" in done.err) == (2, True)
    shard = ("--shard", "1/2", "--log", "mlflow")
    done = invoke("run", "pgd-at", *shard, "--results", tmp_path / "r")
    assert (done.code, "a shard is no result" in done.err) == (2, True)
    assert not (tmp_path / "r").exists()


def test_the_command_tells_of_what_is_stored(
    stored: StoredRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = fake_tensorboard(monkeypatch)
    out = tmp_path / "events"
    done = invoke(
        "export", "--results", tmp_path / "results", "--format", "tensorboard", "--out", out
    )
    assert (done.code, len(told)) == (0, len(figures(stored)) + 1)
    assert done.out == "".join(f"{path}\n" for path in out.iterdir())
