"""What the README promises in five minutes, the tutorials and the pages for users of other libraries
work as written: from the top, in one folder, with fewer samples."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from invoke_cli import Invoked, invoke
from torch import nn

from robench.results import Store

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("unexamined")

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
N = 4
MODELS = ("pgd-at", "trades")


@dataclass
class Followed:
    """What following a page left."""

    commands: dict[str, Invoked] = field(default_factory=dict)
    """By their words, as they were typed."""
    names: dict[str, Any] = field(default_factory=dict)
    """Of the page's Python."""

    def __getitem__(self, start: str) -> Invoked:
        (found,) = (done for line, done in self.commands.items() if line.startswith(start))
        return found


def few(line: str) -> list[str]:
    """A command's words, with few samples and no figures."""
    words = shlex.split(re.sub(r"--n \d+", f"--n {N}", line), comments=True)[1:]
    if words == ["run"]:
        words += ["--suite", "quick", "--n", str(N)]
    if words[0] == "run" and words[1].startswith("--"):
        words[1:1] = MODELS  # in place of the whole zoo
    return words + ["--no-plots"] * (words[0] in ("run", "leaderboard"))


def follow(text: str) -> Followed:
    """Do what ``text`` shows in the working folder: its commands, its Python, the files that it writes
    out; shell scripts and what is for other programs are left out."""
    done = Followed()
    for language, block in BLOCK.findall(text):
        named = re.match(r"# ([\w/]+\.py)\n", block)
        if named:
            path = Path(named[1])
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
        elif language == "python":
            exec(block, done.names)
        elif language == "toml":
            Path("mine.toml").write_text(block)
        elif language == "":
            for line in block.splitlines():
                done.commands[line] = invoke(*few(line.removeprefix("PYTHONPATH=. ")))
    return done


def page(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, as long as these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("pages"))
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def readme(folder: Path, unexamined: None) -> Followed:
    section = page("README.md").partition("## In five minutes each\n")[2].partition("\n## ")[0]
    # Its Python has a test of its own, with a module and tensors.
    # The demonstration has a test of its own too.
    return follow(re.sub(r"^robench demo .*\n", "", section.partition("```python")[0], flags=re.M))


def test_the_readmes_five_minutes(readme: Followed, folder: Path) -> None:
    for start in ("robench run", "robench leaderboard"):
        assert readme[start].code == 0
        assert all(model in readme[start].out for model in MODELS)
    assert readme["robench export"].code == 0
    table = (folder / "table.tex").read_text()
    assert table.count(r"\bottomrule") == 1
    assert all(model in table for model in MODELS)
    assert readme["robench compare"].code == 0
    assert "robust_acc" in readme["robench compare"].out
    gate = readme["robench check"]
    said = re.search(r"trades against pgd-at: (not worse|worse|cannot tell)", gate.out)
    assert said is not None
    assert ["not worse", "worse", "cannot tell"][gate.code] == said[1]


@pytest.mark.slow
def test_the_readmes_leaderboard_of_all_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("run", "--n", "20")
    assert done.code == 0, done.err
    assert len(pd.read_csv("results/leaderboard.csv")) == 8
    assert Path("results/index.html").is_file()


def test_comparing_two_checkpoints(readme: Followed, capsys: pytest.CaptureFixture[str]) -> None:
    done = follow(page("docs/tutorials/compare.md"))
    assert {run.code for run in done.commands.values()} == {0}
    assert re.search(r"[+-]\d+\.\d points, from [+-]\d", capsys.readouterr().out)


def test_a_gate(readme: Followed, folder: Path) -> None:
    done = follow(
        page("docs/tutorials/gate.md")
        .replace("--results release", "")
        .replace('"release"', '"results"')
    )
    assert done["robench run"].code == 0
    assert done["robench check"].code == done.names["answer"].exit_code
    assert "testsuite" in (folder / "gate.xml").read_text()


def test_a_papers_table(readme: Followed, folder: Path) -> None:
    done = follow(page("docs/tutorials/table.md"))
    assert {run.code for run in done.commands.values()} == {0}
    for text in ((folder / "table.tex").read_text(), done.names["text"]):
        assert text.count(r"\\") >= len(MODELS)
    assert done.names["board"]["model"].nunique() == len(MODELS)


def test_a_new_attack(readme: Followed) -> None:
    code = BLOCK.search(page("docs/tutorials/attack.md"))
    assert code is not None
    assert len(code[2].splitlines()) <= 34  # with its imports' blank lines
    done = follow(page("docs/tutorials/attack.md").replace("steps = 20", "steps = 3"))
    (run,) = done.commands.values()
    assert run.code == 0, run.err
    assert "smoothed" in run.out
    size = (done.names["found"] - done.names["data"].batch(range(8))).abs().max()
    assert 0.1 < size <= 0.2 + 1e-6


@pytest.mark.slow
def test_a_cluster_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, _, after = page("docs/tutorials/cluster.md").partition("On a Ray cluster")
    done = follow(before)
    assert [run.code for run in done.commands.values()] == [0, 0, 0, 0]
    assert {stored.record.n for stored in Store("results").records()} == {N}
    assert "robench run MODEL" in after  # parsed elsewhere, run in tests/execution/test_ray.py


PEERS = ["art", "autoattack", "foolbox", "torchattacks"]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the others import
def test_the_same_call_side_by_side(peer: str) -> None:
    """Both are inside the same ball, and robench breaks no less; of a library that is not installed,
    robench's side alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 10)).eval()  # breaks at the first attack
    inputs = torch.rand(6, 1, 6, 6)
    labels = network(inputs).argmax(dim=1)
    names = {"network": network, "inputs": inputs, "labels": labels}
    theirs, *ours = (code for language, code in BLOCK.findall(page(f"docs/peers/{peer}.md")))
    broken = 0
    try:
        exec(theirs, names)
    except ImportError:
        assert peer == "torchattacks"
    else:
        broken = judged(names)
    for code in ours:
        exec(code, names)
        assert judged(names) >= broken


def judged(names: dict[str, Any]) -> int:
    """How many of ``adversarial`` are misclassified; all are in the ball and in [0, 1]."""
    found = torch.as_tensor(np.asarray(names["adversarial"]))
    assert found.shape == names["inputs"].shape
    assert (found - names["inputs"]).abs().max() <= 0.2 + 1e-5
    assert found.min() >= 0
    assert found.max() <= 1
    return int((names["network"](found).argmax(dim=1) != names["labels"]).sum())
