"""``docs/your-own-model.md`` works as written, in one folder, from the top."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest
from fake_hub_data import ClassLabel, Image, Rows, serve
from invoke_cli import invoke

from robench.datasets import load_dataset
from robench.results import Store

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/your-own-model.md").read_text()
SUITE = '[[attacks]]\nname = "one-step"\nattack = "pgd"\nparams = { steps = 1 }\n'


def commands(block: str) -> list[list[str]]:
    """The arguments of every ``robench`` command of a block."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("PYTHONPATH=. ")) for line in lines]
    assert all(first == "robench" for first, *_ in words)
    return [rest for _, *rest in words]


def digits_of_the_hub() -> Rows:
    data = load_dataset("digits", n=60)
    pixels = (255 * data.batch(range(60))[:, 0]).round().byte().numpy()
    images = [lambda row=row: PIL.Image.fromarray(row) for row in pixels]
    features = {"image": Image(), "label": ClassLabel("0123456789")}
    return Rows({"image": images, "label": data.labels.tolist()}, features)


@dataclass(frozen=True)
class Followed:
    """What following the page left."""

    folder: Path
    done: list[str]
    """The commands, as their first words."""
    printed: str
    """By the page's Python."""
    whole: bool

    @property
    def network(self) -> str:
        """Of torchvision, that was run."""
        return SMALLER[not self.whole]


DEAR = ("timm", "program.pt2")
"""What takes seconds to load or to make; both are run, smaller, in ``test_ways_in_models.py`` too"""
SMALLER = ("resnet18", "squeezenet1_1")
"""The page's network of torchvision, and one with a tenth of the weights"""


@pytest.fixture(
    scope="module",
    params=[DEAR, pytest.param((), marks=pytest.mark.slow)],
    ids=["quick", "whole"],
)
def followed(request, tmp_path_factory, unexamined) -> Iterator[Followed]:
    """The page from top to bottom, but for some blocks, in a folder that stays the working one.

    Runs have a tenth of the page's samples and one step: neither their number nor the suite is the point.
    """
    folder = tmp_path_factory.mktemp("page")
    (folder / "one.toml").write_text(SUITE)
    names: dict[str, object] = {}
    done: list[str] = []
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        serve(patch, {"OWNER/NAME": {"validation": digits_of_the_hub()}})
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S):
            if any(name in block for name in request.param):
                continue
            if request.param:
                block = block.replace(*SMALLER)
            if "timm" in block and importlib.util.find_spec("timm") is None:
                continue
            # They download; fakes of them are in test_ways_in_models.py.
            if "robustbench:" in block:
                continue
            if named := re.match(r"# (\w+\.py)\n", block):
                (folder / named[1]).write_text(block)
            elif language == "python":
                with contextlib.redirect_stdout(printed):
                    exec(block.replace("n=20,", "n=2,"), names)
            else:
                for arguments in commands(block):
                    if arguments[0] == "run":
                        place = arguments.index("--n") + 1
                        arguments[place] = str(int(arguments[place]) // 10)
                        arguments[arguments.index("quick")] = "one.toml"
                        arguments.append("--no-plots")
                    elif arguments[0] == "doctor" and "--n" not in arguments:
                        arguments += ["--n", "12"]
                    result = invoke(*arguments)
                    assert result.code == 0, (arguments, result.err, result.out)
                    done.append(arguments[0])
        yield Followed(folder, done, printed.getvalue(), request.param == ())


def test_the_page_from_top_to_bottom(followed):
    assert "Outcome" in followed.printed
    assert followed.done.count("doctor") >= 4 + followed.whole
    assert followed.done.count("run") >= 6 + followed.whole
    # Each run ends with a row; the module from Python has its own.
    results = followed.folder / "results"
    models = {stored.record.model.name for stored in Store(results).records()}
    assert {"my-module", "checkpoint", "own", followed.network, "mine"} <= models
    assert ("program" in models) == followed.whole
    assert (results / "leaderboard.csv").is_file()


def test_what_the_page_says_would_happen(followed):
    forgotten = invoke(
        *("doctor", "own.pt", "--arch", "my_network:build", "--arch-arg", "width=32"),
        *("--dataset", "digits"),
    )
    assert forgotten.code == 1
    assert "--input low=-1.0" in forgotten.out


@pytest.mark.slow
def test_what_the_page_says_of_networks_that_were_never_trained(followed):
    network = followed.network
    untrained = invoke(
        *("doctor", f"{network}.pt", "--arch", f"torchvision:{network}", "--dataset", "images"),
        *("--dataset-option", "size=32", "--n", "24"),
    )
    assert untrained.code == 1
    assert "accuracy_near_chance" in untrained.out or "one_class_predicted" in untrained.out


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for path in (ROOT / "robench/doctor").glob("*.py")
        for name in re.findall(r'name="(\w+)"', path.read_text())
    ),
)
def test_every_finding_is_explained(name):
    assert f"`{name}`" in TEXT
