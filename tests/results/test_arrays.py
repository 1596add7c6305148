"""Arrays that are written and read by rows, never whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from record_factory import make_record, make_samples

from robench.errors import CorruptRecordError
from robench.results import Store
from robench.results.arrays import Array, ArrayRows, Rows, save_arrays

SHAPE = (3, 8, 8)


def parts(count: int, size: int = 7, shape: tuple[int, ...] = SHAPE) -> Iterator[Array]:
    """Rows of random numbers, each its own for its position."""
    for start in range(0, count, size):
        rows = range(start, min(start + size, count))
        yield np.stack([np.random.default_rng(row).random(shape, np.float32) for row in rows])


def written(folder: Path, count: int, **options: int) -> Path:
    array = Rows((count, *SHAPE), parts(count, **options))
    folder.mkdir(exist_ok=True)
    with (folder / "a.npz").open("wb") as stream:
        save_arrays(stream, {"adversarial": array, "maps": np.eye(2)})
    return folder / "a.npz"


def test_what_is_written_by_parts_is_what_is_written_at_once(tmp_path: Path) -> None:
    paths = [written(tmp_path / str(size), 20, size=size) for size in (1, 7, 20)]
    assert len({path.read_bytes() for path in paths}) == 1
    with np.load(paths[0], allow_pickle=False) as archive:
        assert np.array_equal(archive["adversarial"], np.concatenate(list(parts(20))))
        assert np.array_equal(archive["maps"], np.eye(2))


@pytest.mark.parametrize(
    "rows", [[0, 1, 2], [19, 0, 7, 7, 3], [], range(20), slice(None), np.array([5, 4])]
)
def test_rows_come_in_the_order_asked_for(tmp_path: Path, rows: list[int]) -> None:
    whole = np.concatenate(list(parts(20)))
    found = ArrayRows(written(tmp_path, 20), "adversarial")
    assert (len(found), found.shape) == (20, (20, *SHAPE))
    for _ in range(2):
        assert np.array_equal(
            found[rows], whole[rows if isinstance(rows, slice) else np.asarray(rows, np.int64)]
        )
    for outside in ([-1], [20]):
        with pytest.raises(IndexError):
            found[outside]


def test_an_npz_of_numpys_own_is_read_as_well(tmp_path: Path) -> None:
    whole = np.concatenate(list(parts(5)))
    np.savez_compressed(tmp_path / "old.npz", adversarial=whole.astype(np.float64))
    rows = ArrayRows(tmp_path / "old.npz", "adversarial")
    assert np.array_equal(rows[[4, 1]], whole[[4, 1]])


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, 20)
    good = path.read_bytes()
    with pytest.raises(CorruptRecordError, match="missing"):
        ArrayRows(tmp_path / "none.npz", "adversarial")
    with pytest.raises(CorruptRecordError, match="cannot be read"):
        ArrayRows(path, "nothing")
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(CorruptRecordError, match="cannot be read"):
        ArrayRows(path, "adversarial")
    path.write_bytes(good[:5000] + bytes(200) + good[5200:])
    with pytest.raises(CorruptRecordError, match="cannot be read"):
        ArrayRows(path, "adversarial")[range(20)]


def test_too_few_rows_leave_nothing_behind(tmp_path: Path) -> None:
    samples = make_samples("BS")
    short = Rows((2, *SHAPE), parts(1))
    with pytest.raises(ValueError, match="1 rows"):
        Store(tmp_path).write(make_record(samples), samples, adversarial=short)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    shape = (3, 64, 64)
    one_row = 4 * 3 * 64 * 64
    peaks = []
    for count in (20, 200):
        array = Rows((count, *shape), parts(count, 4, shape))
        tracemalloc.start()
        with (tmp_path / "a.npz").open("wb") as stream:
            save_arrays(stream, {"adversarial": array})
        rows = ArrayRows(tmp_path / "a.npz", "adversarial")
        for start in range(0, count, 4):
            rows[range(start, start + 4)]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + one_row
