"""Inputs that outgrow the memory go to a file, and nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_models import TinyCNN, images, predictions

import robench
from robench.errors import StoreError
from robench.evaluation import adversarial_inputs
from robench.evaluation.adversarial_inputs import FileInputs, room_for
from robench.records import AttackSpec, Suite
from robench.results import Store
from robench.results.progress import RowFile

pytestmark = pytest.mark.usefixtures("unexamined")

INPUTS = images(12, seed=1)
LABELS = predictions(TinyCNN(), INPUTS)
SUITE = Suite(
    name="two",
    attacks=(
        AttackSpec(
            name="both",
            stages=(
                AttackSpec(name="fgsm", attack="pgd", params={"steps": 1}),
                AttackSpec(name="apgd", attack="apgd", params={"loss": "ce", "steps": 5}),
            ),
        ),
    ),
)


def evaluate(results: Path, **options: Any) -> Any:
    return robench.evaluate(
        TinyCNN(),
        (INPUTS, LABELS),
        SUITE,
        num_classes=6,
        input={"channels": 1},
        threat_model="Linf-0.02",
        device="cpu",
        precision="fp32",
        results=results,
        **options,
    )[0]


def table_of(stored: Any) -> Any:
    return stored.table.set_index("sample_id")


def test_small_jobs_stay_in_memory(tmp_path: Path) -> None:
    room = room_for(10, (1, 8, 8), lambda: pytest.fail("a file was opened"))
    assert isinstance(room, torch.Tensor)
    assert room.shape == (10, 1, 8, 8)


def test_a_file_gives_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(tmp_path / "memory", save_adversarial=True)
    monkeypatch.setattr(adversarial_inputs, "_IN_MEMORY", 0)
    stored = evaluate(tmp_path / "file", save_adversarial=True)
    assert table_of(stored).equals(table_of(expected))
    assert stored.record.counts == expected.record.counts
    one, two = (Store(tmp_path / place) for place in ("memory", "file"))
    key = expected.record.key
    assert np.array_equal(one.adversarial_rows(key)[:], two.adversarial_rows(key)[:])
    kept, other = one.read_arrays(key), two.read_arrays(key)
    assert kept.keys() == other.keys()
    for name, array in kept.items():
        assert np.array_equal(array, other[name]), name
    assert not list((tmp_path / "file" / "progress").iterdir())


def test_an_interrupted_job_goes_on_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adversarial_inputs, "_IN_MEMORY", 0)
    expected = table_of(evaluate(tmp_path / "whole"))
    written: list[int] = []
    write = RowFile.write

    def breaking(self: RowFile, rows: Any, values: Any) -> None:
        write(self, rows, values)
        written.append(len(values))
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "write", breaking)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path / "broken")
    left = sorted(path.suffix for path in (tmp_path / "broken" / "progress").iterdir())
    assert left == [".bin", ".rows"]
    # Snapshots hold what is known of each sample, not the inputs.
    shutil.copytree(tmp_path / "broken", tmp_path / "lost")
    assert table_of(evaluate(tmp_path / "broken")).equals(expected)
    for path in (tmp_path / "lost" / "progress").glob("*.rows"):
        path.unlink()
    assert table_of(evaluate(tmp_path / "lost")).equals(expected)


def test_a_disk_that_fills_up_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adversarial_inputs, "_IN_MEMORY", 0)

    def full(self: RowFile, rows: Any, values: Any) -> None:
        raise StoreError("cannot write: No space left on device", where=self.path)

    monkeypatch.setattr(RowFile, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        evaluate(tmp_path)
    assert not Store(tmp_path).keys()


def test_a_record_gains_its_adversarial_inputs_and_nothing_else_changes(tmp_path: Path) -> None:
    without = evaluate(tmp_path / "one")
    store = Store(tmp_path / "one")
    assert not store.has_adversarial(without.record.key)
    with pytest.raises(StoreError, match="--save-adversarial"):
        store.adversarial_rows(without.record.key)[:]
    asked = evaluate(tmp_path / "one", save_adversarial=True)
    at_once = evaluate(tmp_path / "two", save_adversarial=True)
    assert asked.record == without.record == store.read(asked.record.key).record
    assert asked.table.equals(without.table)
    kept = [
        Store(tmp_path / place).adversarial_rows(asked.record.key)[:] for place in ("one", "two")
    ]
    assert np.array_equal(*kept)
    assert at_once.record.counts == asked.record.counts
    # Now they are there, and nothing is done a third time, whether or not they are asked for.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.*")}
    for save in (True, False):
        again = evaluate(tmp_path / "one", save_adversarial=save)
        assert again.record == without.record
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.*")} == before


def test_a_record_that_no_longer_comes_out_the_same_is_replaced_whole(tmp_path: Path) -> None:
    """As on another machine, by rounding: inputs and table must be of one run."""
    stored = evaluate(tmp_path)
    store = Store(tmp_path)
    first, *others = stored.samples
    told = first.model_copy(update={"clean_margin": 1234.5})
    store.write(stored.record.model_copy(update={"created": "long ago"}), [told, *others])
    again = evaluate(tmp_path, save_adversarial=True)
    assert again.record.created != "long ago"
    assert table_of(again).equals(table_of(stored))


def test_rows_are_read_and_written_by_position(tmp_path: Path) -> None:
    inputs = FileInputs(RowFile(tmp_path / "a.rows", 5, (1, 2, 2)))
    values = torch.rand(2, 1, 2, 2)
    inputs[torch.tensor([3, 1])] = values
    assert len(inputs) == 5
    assert torch.equal(
        inputs[torch.tensor([1, 0, 3])], torch.stack((values[1], 0 * values[0], values[0]))
    )
