"""Traces: what searches saw, to the last bit, whatever the batch and the interruptions were."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from attack_models import ExactNetwork, LinearModel, images, predictions, run_search

import robench
from robench.attacks.apgd import APGD
from robench.attacks.base import Attack
from robench.attacks.fab import FAB
from robench.attacks.fmn import FMN
from robench.attacks.hop_skip_jump import HopSkipJump
from robench.attacks.pgd import PGD
from robench.attacks.square import Square
from robench.errors import CorruptRecordError, UsageError
from robench.records import AttackSpec, Suite
from robench.results import Store
from robench.results.traces import ROW, Traced, TraceParts, read_trace, write_trace
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

LINF = ThreatModel.of("Linf", 0.02)
MODEL = ExactNetwork()
N = 16
INPUTS = images(N, seed=1)
LABELS = predictions(MODEL, INPUTS)
ATTACKS: dict[str, Callable[[], Attack[Any]]] = {
    "pgd": lambda: PGD(LINF, steps=5, restarts=2),
    "apgd-t": lambda: APGD(LINF, steps=5, loss="dlr-targeted", targets=3),
    "fab": lambda: FAB(LINF, steps=2, targets=2),
    "fmn": lambda: FMN(LINF, steps=4),
    "square": lambda: Square(LINF, queries=25),
    "hop-skip-jump": lambda: HopSkipJump(LINF, steps=2, draws=6),
}


def traced(parts: TraceParts, **how: Any) -> np.ndarray[Any, Any]:
    """All rows of a search that ran to its end."""
    attack = how.pop("attack")
    run_search(attack, MODEL, INPUTS, LABELS, trace=parts, **how)
    return np.concatenate(list(parts.blocks()))


@pytest.mark.parametrize("name", ATTACKS)
def test_batch_and_order_change_no_row(name: str, tmp_path: Path) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    ways: list[dict[str, Any]] = [{}, {"batch_size": 5, "order": order}]
    rows = [
        traced(TraceParts(tmp_path / f"{i}.bin"), attack=ATTACKS[name](), **way)
        for i, way in enumerate(ways)
    ]
    assert len(rows[0])
    assert len(np.unique(rows[0]["sample"])) > N / 2 or name == "square"
    assert rows[0].tobytes() == rows[1].tobytes()


@pytest.mark.parametrize("name", ["pgd", "apgd-t", "square"])
def test_an_interruption_loses_and_repeats_no_row(name: str, tmp_path: Path) -> None:
    whole = traced(TraceParts(tmp_path / "whole.bin"), attack=ATTACKS[name](), batch_size=9)
    parts, kept = TraceParts(tmp_path / "parts.bin"), list[Any]()

    def save(make: Callable[[], dict[str, Any]]) -> None:
        if len(kept) < 2:  # the last steps before the end are in no snapshot
            kept.append(make())
        else:
            kept.append(None)
        if len(kept) == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_search(ATTACKS[name](), MODEL, INPUTS, LABELS, batch_size=9, trace=parts, save=save)
    # What a killed process was writing.
    with next(tmp_path.glob("parts.trace-*")).open("ab") as stream:
        stream.write(b"\x01" * (ROW.itemsize - 1))
    resumed = traced(parts, attack=ATTACKS[name](), batch_size=9, snapshot=kept[1])
    assert whole.tobytes() == resumed.tobytes()
    parts.clear()
    assert list(tmp_path.glob("parts*")) == []


def test_no_more_is_held_than_a_buffer_and_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.evaluation.traces._BUFFERED", 20)
    sizes: list[int] = []

    class Parts(TraceParts):
        def writer(self) -> Callable[[Any], None]:
            return lambda rows: sizes.append(len(rows))

    run_search(ATTACKS["pgd"](), MODEL, INPUTS, LABELS, batch_size=9, trace=Parts(Path("nowhere")))
    assert len(sizes) > 3
    assert max(sizes[:-1]) < 20 + 9


def test_the_numbers_are_those_of_the_closed_form(tmp_path: Path) -> None:
    """Two classes and one step: margins are linear, and the loss is the margin with its sign."""
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 0.0, -1.0]])
    model, slope = LinearModel(weight, torch.zeros(2)), weight[0] - weight[1]
    inputs = 0.3 + 0.4 * torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    leads = (inputs.flatten(1) @ slope).abs()
    labels = predictions(model, inputs)
    parts = TraceParts(tmp_path / "one.bin")
    attack = PGD(ThreatModel.of("Linf", 0.01), steps=2, loss="margin", random_start=False)
    run_search(attack, model, inputs, labels, trace=parts)
    rows = pd.DataFrame(np.concatenate(list(parts.blocks()))).set_index(["sample", "step"])
    first = rows.xs(1, level="step")
    assert np.allclose(first["loss"], -leads, atol=1e-5)
    assert np.allclose(first["gradient_norm"], slope.norm(), atol=1e-5)
    second = rows.xs(2, level="step")
    assert np.allclose(second["margin"], leads - attack.length * slope.abs().sum(), atol=1e-5)
    assert np.allclose(second["loss"], -second["margin"], atol=1e-5)
    # After the last step nothing is asked of gradients any more.
    assert bool(rows.xs(3, level="step")["loss"].isna().all())


def test_rows_of_later_searches_and_of_searches_without_an_end_do_not_count(tmp_path: Path) -> None:
    parts = TraceParts(tmp_path / "job.bin")
    told = [
        (0, 70, 0, 2),
        (0, 70, 0, 1),
        (0, 70, 1, 1),
        (0, 70, 2, 1),
        (0, 70, 1, -1),
        (0, 3, 0, 1),
    ]
    rows = np.array([(*row, 1.0, np.nan, np.nan) for row in told], ROW)
    parts.writer()(rows)
    parts.writer()(rows[:2])
    first, second = parts.blocks()
    assert len(first) == 0
    assert second[["search", "step"]].tolist() == [(0, 1), (0, 2), (1, 1)]
    stream = io.BytesIO()
    write_trace(stream, parts, Traced([("pgd", False)], [f"s{i}" for i in range(71)]))
    path = tmp_path / "job.trace"
    path.write_bytes(stream.getvalue())
    frame = pd.concat(read_trace(path))
    assert frame["sample_id"].tolist() == ["s70"] * 3
    assert frame["stage"].unique().tolist() == ["pgd"]
    path.write_bytes(b"nothing")
    with pytest.raises(CorruptRecordError, match="no trace"):
        list(read_trace(path))


SUITE = Suite(
    name="two",
    attacks=(
        AttackSpec(
            name="both",
            stages=(
                AttackSpec(name="apgd", attack="apgd", params={"loss": "ce", "steps": 4}),
                AttackSpec(name="square", attack="square", params={"queries": 12}),
            ),
        ),
    ),
)


def evaluate(results: Path | None, **options: Any) -> Any:
    how = {"device": "cpu", "precision": "fp32", "results": results, **options}
    about = {"threat_model": LINF, "num_classes": 6, "input": {"channels": 1}}
    return robench.evaluate(ExactNetwork(), (INPUTS, LABELS), SUITE, **about, **how)[0]


def test_a_record_gains_its_trace_and_nothing_else_changes(tmp_path: Path) -> None:
    without = evaluate(tmp_path / "one")
    store = Store(tmp_path / "one")
    assert without.trace_path is None
    asked = evaluate(tmp_path / "one", trace=True)
    assert store.has_trace(asked.record.key)
    assert asked.record == without.record
    assert asked.table.equals(without.table)
    frame = pd.concat(read_trace(asked.trace_path))
    assert frame["stage"].unique().tolist() == ["apgd", "square"]
    attacked = asked.table[asked.table["outcome"].isin(["survived", "broken"])]
    assert set(frame["sample_id"]) == set(attacked["sample_id"])
    broken = attacked.set_index("sample_id")["outcome"] == "broken"
    assert ((frame.groupby("sample_id")["margin"].min() <= 0)[broken.index] == broken).all()
    # Kept when the record is made anew for something else, and checked with it.
    both = evaluate(tmp_path / "one", save_adversarial=True)
    assert both.trace_path == asked.trace_path
    store.verify(both.record.key)
    content = asked.trace_path.read_bytes()
    asked.trace_path.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(CorruptRecordError):
        store.verify(both.record.key)
    assert list((tmp_path / "one" / "progress").iterdir()) == []


def test_workers_change_no_row(tmp_path: Path) -> None:
    one, two = (evaluate(tmp_path / str(w), trace=True, workers=w, batch_size=10) for w in (1, 2))
    assert one.trace_path.name.split(".", 1)[1] == two.trace_path.name.split(".", 1)[1]


def test_a_trace_needs_a_folder_and_a_whole_job(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no results folder is named"):
        evaluate(None, trace=True)
    with pytest.raises(UsageError, match="not of shards"):
        evaluate(tmp_path, trace=True, shard="1/2")
