"""Where a small document is read whole, a pipe, a folder or a huge file ends in one line, and never hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robench.attacks.suites import load_suite
from robench.datasets.imagenet import load_imagenet
from robench.datasets.object_masks import read_coco, read_voc
from robench.defenses.training_state import STATE_FILE, TrainingState
from robench.errors import RobenchError
from robench.files import config_folder, read_bytes
from robench.models.cards import read_card
from robench.models.checkpoints import read_checkpoint
from robench.regression_check import Policy
from robench.reporting.leaderboard import read_leaderboard
from robench.results import Store
from robench.results.progress import Progress
from robench.trust import trust, trusted_paths

KEY = "0" * 64


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """Whoever opens a pipe that nobody writes waits for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "card": ("card.toml", read_card),
    "suite": ("suite.toml", load_suite),
    "policy": ("policy.toml", Policy.load),
    "leaderboard": ("leaderboard.csv", read_leaderboard),
    "weights": ("w.pt", read_checkpoint),
    "record": (f"records/00/{KEY}.json", lambda path: Store(path.parents[2]).read(KEY)),
    "scan": (f"records/00/{KEY}.json", lambda path: fails(Store(path.parents[2]).scan().problems)),
    "progress": ("a.progress", lambda path: Progress(path, lambda *_: None).load()),
    "training": (STATE_FILE, lambda path: TrainingState.load(path.parent, {})),
    "voc": ("0.xml", lambda path: read_voc(path.parent)),
    "coco": ("coco.json", read_coco),
    "trusted": ("it", trust),
}


def fails(problems: tuple[Any, ...]) -> None:
    for problem in problems:
        raise problem.error


@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
def test_a_pipe_is_no_document(name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "d" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(
        (RobenchError, OSError), match=r"not a file|no such folder or file|unknown suite"
    ) as refused:
        read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "huge", "device"])
def test_the_list_of_what_is_trusted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = config_folder() / "trusted.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as stream:
            stream.truncate(2**24 + 1)
    with pytest.raises(RobenchError, match="what is trusted cannot be read"):
        trusted_paths()


def test_what_was_trusted_and_is_a_pipe_now_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    card = tmp_path / "card.toml"
    card.touch()
    trust(card)
    card.unlink()
    os.mkfifo(card)
    assert [found.state for found in trusted_paths()] == ["changed"]


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bytes(path, 4)
    with pytest.raises(OSError, match="a folder, not a file"):
        read_bytes(tmp_path)


def test_lists_of_samples(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    with pytest.raises(RobenchError, match="not a file"):
        load_imagenet(root=tmp_path, samples=str(tmp_path / "list.txt"))
