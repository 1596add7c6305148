"""Rows in a file: what is written is what is read, also by the next process."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robench.errors import StoreError
from robench.results.progress import RowFile


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 6), st.floats(-3, 3, width=32)), max_size=20))
def test_it_behaves_like_an_array(tmp_path: Path, writes: list[tuple[int, float]]) -> None:
    path = tmp_path / "progress" / "a.rows"
    path.unlink(missing_ok=True)
    file, expected = RowFile(path, 7, (2, 3)), np.zeros((7, 2, 3), np.float32)
    for row, value in writes:
        file.write([row], np.full((1, 2, 3), value, np.float32))
        expected[row] = value
    assert np.array_equal(file.read([6, 0, 3, 3]), expected[[6, 0, 3, 3]])
    again = RowFile(path, 7, (2, 3))
    assert again.resumed
    assert np.array_equal(again.read(range(7)), expected)


def test_a_file_of_another_size_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    RowFile(path, 3, (4,)).write([1], np.ones((1, 4), np.float32))
    other = RowFile(path, 4, (4,))
    assert not other.resumed
    assert not other.read(range(4)).any()
    assert path.stat().st_size == 4 * 4 * 4


def test_rows_outside_are_refused(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.rows", 3, (4,))
    for row in (-1, 3):
        with pytest.raises(IndexError):
            file.read([row])
        with pytest.raises(IndexError):
            file.write([row], np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="zip"):
        file.write([0, 1], np.ones((1, 4), np.float32))


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """A limit on the file size makes the kernel take a part, and refuse the rest."""
    file = RowFile(tmp_path / "a.rows", 3, (4,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written: File too large"):
            file.write([0, 1], np.ones((2, 4), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read([0]).all()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        RowFile(tmp_path / "file" / "a.rows", 3, (4,))
