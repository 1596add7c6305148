"""The demonstration shows and explains, and its folder is an ordinary one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from invoke_cli import invoke

import robench

pytestmark = pytest.mark.usefixtures("unexamined")


def test_the_demonstration_explains_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("demo", "--n", "8", "--no-plots")
    assert done.code == 0, done.err
    assert re.findall(r"^(\d)\. ", done.out, re.M) == ["1", "2", "3", "4", "5"]
    assert done.out.isascii()
    assert max(map(len, done.out.splitlines())) <= 100
    # Eight lines of two images side by side, which differ.
    pictures = re.findall(r"^ {6}(.{16}) {4}(.{16})$", done.out, re.M)
    assert len(pictures) == 8
    assert any(one != other for one, other in pictures)
    board = robench.leaderboard("robench-demo").set_index("model")
    assert set(board.index) == {"standard", "pgd-at"}
    assert board.loc["standard", "robust_acc"] == 0
    for model in board.index:
        assert f"{board.loc[model, 'robust_acc']:.1f} % under attack" in done.out
    assert "standard against pgd-at: worse, exit code 1 (robust_acc" in done.out
    assert re.search(
        r"pgd-at against standard: (not worse, exit code 0|cannot tell, exit code 2)", done.out
    )
    assert invoke("demo", "--n", "0").code == 2
