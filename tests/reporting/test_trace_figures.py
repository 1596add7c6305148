"""Traces as people look at them: a figure, TensorBoard's scalars, and what a check says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_trackers import fake_tensorboard
from invoke_cli import invoke
from record_factory import make_record, make_samples

from robench.exports.tensorboard import TensorBoard
from robench.reporting.model_results import collect
from robench.reporting.plots.traces import search_traces
from robench.results import Store, StoredRecord
from robench.results.traces import ROW, Traced, TraceParts, write_trace


@pytest.fixture
def stored(tmp_path: Path) -> StoredRecord:
    """Two searches of three steps: margins 3, 2, 1 and 5, 4, 3, no gradients in the second."""
    samples = make_samples("SB" * 10)
    parts = TraceParts(tmp_path / "job.bin")
    rows = [
        (0, i, 0, step, 4 + 2 * i - step, -1.0, 7.0 if i == 0 else np.nan)
        for i in (0, 1)
        for step in (1, 2, 3)
    ]
    marks = [(0, i, 0, -1, np.nan, np.nan, np.nan) for i in (0, 1)]
    parts.writer()(np.array([*rows, *marks], ROW))
    names = Traced([("pgd-20", False)], [sample.sample_id for sample in samples])
    store = Store(tmp_path / "results")
    return store.write(make_record(samples), samples, trace=lambda s: write_trace(s, parts, names))


def test_the_figure_shows_medians_with_the_quartiles(stored: StoredRecord) -> None:
    (result,) = collect([stored])
    figure = search_traces([result])
    assert figure is not None
    margins, norms = figure.axes
    (line, _) = margins.get_lines()
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == [4, 3, 2]
    assert norms.get_lines()[0].get_ydata().tolist() == [7, 7, 7]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pgd-20"]
    (bare,) = collect([StoredRecord(stored.record, stored.arrow)])
    assert search_traces([bare]) is None


def test_tensorboard_gets_every_step(
    stored: StoredRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = fake_tensorboard(monkeypatch)
    own, run = TensorBoard(tmp_path / "out").write(stored)
    assert (run.parent, run.name[:6]) == (own, "pgd-20")
    assert told[f"{run.name}/best_margin/median"] == [(1, 4), (2, 3), (3, 2)]
    assert told[f"{run.name}/best_margin/low"] == [(1, 3.5), (2, 2.5), (3, 1.5)]
    assert told[f"{run.name}/gradient_norm/high"] == [(1, 7), (2, 7), (3, 7)]
    assert told[f"{own.name}/robust_acc"] == [(0, 50)]
    bare = TensorBoard(tmp_path / "out").write(StoredRecord(stored.record, stored.arrow))
    assert bare == [own]


def test_check_names_the_attack_that_failed(stored: StoredRecord, tmp_path: Path) -> None:
    """A survivor's search had crossed the boundary, as every sample's had here, and nobody saw it."""
    folder = str(Store(tmp_path / "results").folder)
    done = invoke("results", "check", folder)
    assert (done.code, done.out) == (0, "1 records, no rule is broken.\n")
    samples, parts = stored.samples, TraceParts(tmp_path / "crossed.bin")
    rows = [(0, i, 0, step, -1.0, np.nan, np.nan) for i in range(20) for step in (1, -1)]
    parts.writer()(np.array(rows, ROW))
    names = Traced([("pgd-20", False)], [sample.sample_id for sample in samples])
    Store(folder).write(stored.record, samples, trace=lambda s: write_trace(s, parts, names))
    done = invoke("results", "check", folder, "--json")
    assert done.code == 1
    (told,) = done.json["attack_failures"]
    assert (told["key"], told["test"]) == (stored.record.key, "silent_success")
    assert "for 10 of 10 (100%" in told["evidence"]
