"""What a reader, a disk or a console refuses is no failure of the command; a gate's 0 means 0."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked_command import ForkedCommand
from invoke_cli import invoke
from torch import nn

from robench.models.cards import read_card, write_card
from robench.models.zoo import find_card
from robench.trust import trust

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="a shell and signals"),
    pytest.mark.usefixtures("unexamined"),
]

ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
RUN = ("run", "standard", "--suite", "quick", "--n", "3", "--results", "r", "--no-plots")


def started(
    folder: Path, *words: str, redirect: str = "", python: str = "-m robench", **variables: str
) -> subprocess.CompletedProcess[str]:
    line = " ".join([sys.executable, python, *words, redirect])
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, errors="replace"
    )


@pytest.mark.parametrize(
    "redirect, code, said",
    [
        ("> /dev/full", 2, "No space left on device"),
        (">&-", 0, ""),
        pytest.param("2> /dev/full", 0, "", marks=pytest.mark.slow),
        pytest.param("> /dev/full 2>&-", 2, "", marks=pytest.mark.slow),
        ("| true; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_output_that_goes_nowhere(tmp_path: Path, redirect: str, code: int, said: str) -> None:
    done = started(tmp_path, "trust", redirect=redirect)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_an_evaluation_outlives_its_output(tmp_path: Path) -> None:
    """And a console that lacks the characters, as does the table that is printed later."""
    done = ForkedCommand(*RUN, folder=tmp_path, output="/dev/full", encoding="ascii").done()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r/leaderboard.csv").is_file()
    table = ("leaderboard", "--results", "r", "--no-plots")
    shown = ForkedCommand(*table, folder=tmp_path, encoding="ascii").done()
    assert shown.returncode == 0, shown.stderr
    assert "standard" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["> /dev/full", "> /dev/full 2>&1", ">&- 2>&-"])
def test_an_evaluation_outlives_what_a_shell_does_to_its_output(
    tmp_path: Path, redirect: str
) -> None:
    done = started(tmp_path, *RUN, redirect=redirect, **ASCII)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r/leaderboard.csv").is_file()
    shown = started(tmp_path, "leaderboard", "--results", "r", "--no-plots", **ASCII)
    assert shown.returncode == 0, shown.stderr
    assert "standard" in shown.stdout


ENDINGS = {
    "exit": "import sys; sys.exit(0)",
    "_exit": "import os; os._exit(0)",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "raised": "raise SystemExit",
    "killed": "import os; os.kill(os.getpid(), 9)",
}
QUICK_ENDINGS = {("built", "exec"), ("called", "killed")}


CHECK = ("check", "./card.toml", "--against", "standard", "--suite", "quick", "--n", "3")


def put_model(folder: Path, at: str, act: str) -> str:
    """A trusted card of a network that acts when it is built or called; the path it needs."""
    (folder / "ending.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
        + ("    def forward(self, inputs):\n" if at == "called" else "")
        + f"        {act}\n"
    )
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), folder / "w.pt")
    digest = hashlib.sha256((folder / "w.pt").read_bytes()).hexdigest()
    card = read_card(find_card("digits/Linf-0.2/standard").path)
    architecture = {"name": "ending:Net", "arguments": {}}
    card = card.model_copy(
        update={
            "name": "ending",
            "architecture": card.architecture.model_copy(update=architecture),
            "weights": card.weights.model_copy(update={"path": "w.pt", "sha256": digest}),
        }
    )
    trust(write_card(card, folder / "card.toml"))
    return f"{folder}:{Path(__file__).parents[2]}"


@pytest.mark.parametrize(
    ("at", "ending"),
    [
        pytest.param(
            at,
            ending,
            marks=() if (at, ending) in QUICK_ENDINGS else pytest.mark.slow,
        )
        for at in ("built", "called")
        for ending in ENDINGS
    ],
)
def test_a_gate_never_passes_a_model_that_ends_the_process(
    tmp_path: Path, ending: str, at: str
) -> None:
    path = put_model(tmp_path, at, ENDINGS[ending])
    done = ForkedCommand(*CHECK, "--results", "r", folder=tmp_path, path=path).done()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" in done.stderr


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_the_evaluation_of_a_gate_ends_with_it(tmp_path: Path, how: signal.Signals) -> None:
    act = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    path = put_model(tmp_path, "called", act)
    gate = ForkedCommand(*CHECK, "--results", "r", folder=tmp_path, path=path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    gate.send_signal(how)
    assert gate.wait() == (130 if how == signal.SIGINT else -how)
    other = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    while other.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not other.is_file()


def test_a_gate_refuses_an_unknown_model_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robench.api.prepare", lambda _: pytest.fail("torch was needed"))
    for models in (("nosuch", "pgd-at"), ("pgd-at", "nosuch")):
        done = invoke("check", models[0], "--against", models[1], "--results", tmp_path)
        assert done.code == 2
        assert done.err.startswith("robench: error: unknown model 'nosuch'")
