from __future__ import annotations

import os
import threading
from pathlib import Path

import platformdirs
import pytest

from robench.errors import StoreError
from robench.files import (
    atomic_write,
    cache_folder,
    data_folder,
    ensure_writable,
    file_sha256,
    stale_temporaries,
)


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("ROBENCH_CACHE", raising=False)
    monkeypatch.delenv("ROBENCH_DATA", raising=False)
    return monkeypatch


def test_a_failed_write_keeps_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "made" / "kept"
    atomic_write(target, b"old")

    def interrupted(stream: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, interrupted)
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["kept"]


def test_a_folder_in_the_files_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot be written: Is a directory"):
        atomic_write(tmp_path / "folder", b"new")
    assert os.listdir(tmp_path) == ["folder"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    """Each has a temporary file of its own, so that the last rename wins whole."""
    target = tmp_path / "file"
    first_half, second = threading.Event(), threading.Event()

    def slow(stream: object) -> None:
        stream.write(b"a" * 10)  # type: ignore[attr-defined]
        first_half.set()
        second.wait(10)
        stream.write(b"a" * 10)  # type: ignore[attr-defined]

    writer = threading.Thread(target=atomic_write, args=(target, slow))
    writer.start()
    first_half.wait(10)
    atomic_write(target, b"b" * 20)
    assert target.read_bytes() == b"b" * 20
    second.set()
    writer.join()
    assert target.read_bytes() == b"a" * 20


def test_a_new_file_is_as_readable_as_any(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    atomic_write(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_writable_folders_are_left_untouched(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file is no folder. Choose another folder with --out"):
        ensure_writable(tmp_path / "file" / "below", "--out")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is no folder"):
        ensure_writable(tmp_path / "dangling")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    for mode in (0o500, 0o000):
        tmp_path.chmod(mode)
        try:
            with pytest.raises(StoreError, match="no permission"):
                ensure_writable(tmp_path / "results")
        finally:
            tmp_path.chmod(0o700)


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    """Of "abc" (FIPS 180-2, appendix B.1)."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_only_old_temporaries_are_stale(tmp_path: Path) -> None:
    def find(stream: object) -> None:
        assert list(stale_temporaries(tmp_path)) == []
        (found,) = stale_temporaries(tmp_path, older_than=-1)
        assert found.parent == tmp_path / "deep"

    atomic_write(tmp_path / "deep" / "file", find)
    assert list(stale_temporaries(tmp_path, older_than=-1)) == []


def test_one_rule_for_both_folders(tmp_path: Path, no_variables: pytest.MonkeyPatch) -> None:
    usual = platformdirs.user_cache_path("robench", appauthor=False)
    assert cache_folder() == usual
    assert data_folder() == usual / "data"
    no_variables.setenv("ROBENCH_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    assert data_folder() == Path.home() / "mine" / "data"
    no_variables.setenv("ROBENCH_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    assert data_folder(Path("~/given")) == Path.home() / "given"
    no_variables.setenv("ROBENCH_CACHE", "")
    assert cache_folder() == usual
