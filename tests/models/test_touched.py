"""What a model's code touches while it runs is in its key, or makes the key unique."""

from __future__ import annotations

import builtins
import configparser
import gzip
import importlib
import math
import os
import pickle
import sqlite3
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset, load_dataset
from robench.models import wrap_module
from robench.models.code_identity import code_identity
from robench.models.loading import is_unique
from robench.models.touched import Touched
from robench.preparation import check_fit
from robench.records import AttackSpec, Suite

pytestmark = pytest.mark.usefixtures("unexamined")

SUITE = Suite(name="one", attacks=(AttackSpec(name="pgd", attack="pgd", params={"steps": 1}),))


class Net(nn.Module):
    """The brighter half of the picture; ``gain`` is what is read while it runs."""

    gain: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = inputs.flatten(1).chunk(2, dim=1)
        return float(self.gain()) * torch.stack([left.mean(dim=1), right.mean(dim=1)], dim=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, which modules are also imported from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(12, 1, 2, 4, generator=generator)
    labels = (inputs[:, 0, 0].mean(dim=1) < inputs[:, 0, 1].mean(dim=1)).long()
    return ArrayDataset(inputs, labels, num_classes=2, name="halves")


def evaluated(module: nn.Module, data: ArrayDataset, results: Path) -> Any:
    (stored,) = robench.evaluate(
        module, data, SUITE, threat_model="Linf-0.01", results=results, workers=1
    )
    return stored.record


def own(gain: Callable[..., Any]) -> nn.Module:
    return type("Own", (Net,), {"gain": gain})()


def configured(path: str) -> str:
    settings = configparser.ConfigParser()
    settings.read(path)
    return settings["net"]["gain"]


def asked(path: str) -> float:
    with closing(sqlite3.connect(path)) as database:
        return float(database.execute("select 2.0").fetchone()[0])


def opened(path: Path, mode: str = "r") -> Any:
    with path.open(mode) as stream:
        return stream.read()


def zipped(path: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("gain")


# What is read from outside, by routes that no list names.
READERS: dict[str, Callable[[nn.Module], Any]] = {
    "Path.open": lambda self: opened(Path("gain")),
    "configparser": lambda self: configured("gain.ini"),
    "gzip": lambda self: gzip.decompress(opened(Path("gain.gz"), "rb")),
    "zipfile": lambda self: zipped("gain.zip"),
    "sqlite3": lambda self: asked(":memory:"),
    "torch.from_file": lambda self: torch.from_file("gain", size=3, dtype=torch.uint8)[0],
    "a folder": lambda self: len(list(Path().iterdir())),
    "a program": lambda self: subprocess.check_output(["printf", "2"]),
    "Path.exists": lambda self: 1 + Path("gain").exists(),
    "os.stat": lambda self: os.stat("gain").st_size,
    "os.getcwd": lambda self: len(os.getcwd()),
    "by getattr": lambda self: getattr(os, "env" + "iron")["GAIN"],
    "of another's object": lambda self: opened(pickle.loads(pickle.dumps(Path("gain")))),
}


@pytest.fixture
def gains(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "gain").write_text("2.0")
    (here / "gain.ini").write_text("[net]\ngain = 2.0\n")
    with gzip.open(here / "gain.gz", "wb") as stream:
        stream.write(b"2.0")
    with zipfile.ZipFile(here / "gain.zip", "w") as archive:
        archive.writestr("gain", "2.0")
    monkeypatch.setenv("GAIN", "2.0")


@pytest.mark.parametrize("kind", READERS)
def test_what_is_read_while_it_runs_makes_the_key_unique(
    kind: str, gains: None, data: ArrayDataset, tmp_path: Path
) -> None:
    first = evaluated(own(READERS[kind]), data, tmp_path / "results")
    (flag,) = (flag for flag in first.flags if flag.name == "not_reusable")
    assert "finds by" in flag.evidence
    if kind == "Path.open":  # whatever it was, it is said where the key is made
        assert evaluated(own(READERS[kind]), data, tmp_path / "results").key != first.key


def warned() -> float:
    warnings.warn("of no consequence", stacklevel=1)
    return 2.0


def written(path: str) -> float:
    with open(path, "a") as stream:
        stream.write("a pass\n")
    return 2.0


def lazily() -> float:
    from xml.dom import minidom

    return 2.0 if minidom.parseString("<a/>").firstChild else 1.0


@pytest.mark.parametrize(
    "gain", [lambda self: warned(), lambda self: lazily(), lambda self: os.fspath("2.0")]
)
@pytest.mark.filterwarnings("ignore:of no consequence")
def test_what_decides_nothing_is_no_reason(
    gain: Callable[..., Any], data: ArrayDataset, tmp_path: Path
) -> None:
    first = evaluated(own(gain), data, tmp_path)
    assert "not_reusable" not in {flag.name for flag in first.flags}
    assert evaluated(own(gain), data, tmp_path) == first


def test_lines_of_a_warning_and_logs_are_not_read(here: Path) -> None:
    with Touched() as touched, warnings.catch_warnings():
        warnings.simplefilter("always")
        written("log")
        shown = warnings.formatwarning("text", UserWarning, __file__, 1)
    assert "What a model's code touches" in shown
    assert list(touched.reads) == []


def test_the_samples_files_are_not_the_models(tmp_path: Path) -> None:
    for number, name in enumerate(("dark", "bright") * 3):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        levels = 255 * np.uint8(number % 2) * np.ones((4, 4), np.uint8)
        Image.fromarray(levels).save(tmp_path / "images" / name / f"{number}.png")
    folder = load_dataset(tmp_path / "images", grey=True)
    model = wrap_module(own(lambda self: 2.0), num_classes=2, input={"channels": 1})
    check_fit(model, folder, torch.device("cpu"))
    assert not is_unique(model)


def test_another_threads_files_are_not_the_models(here: Path) -> None:
    import threading

    (here / "gain").write_text("2.0")
    with Touched() as touched:
        other = threading.Thread(target=(here / "gain").read_text)
        other.start()
        other.join()
    assert list(touched.reads) == []
    with Touched() as touched:
        opened(here / "gain")
    assert len(touched.reads) == 1
    opened(here / "gain")
    assert len(touched.reads) == 1


# Kind → files of a user's, an import inside forward, and what is edited.
IMPORTS = {
    "a name": ({"lazy_of_test.py": "GAIN = 2.0"}, "from lazy_of_test import GAIN as gain"),
    "a module": (
        {"lazy_of_test.py": "GAIN = 2.0"},
        "import lazy_of_test as lazy; gain = lazy.GAIN",
    ),
    "of a package": (
        {"lazy_of_test/__init__.py": "", "lazy_of_test/inner.py": "GAIN = 2.0"},
        "from lazy_of_test.inner import GAIN as gain",
    ),
    "through another": (
        {
            "lazy_of_test.py": "from second_of_test import get",
            "second_of_test.py": "def get():\n    return 2.0",
        },
        "from lazy_of_test import get; gain = get()",
    ),
    "read while it is loaded": (
        {
            "lazy_of_test.py": "import pathlib\nGAIN = float(pathlib.Path('gain').read_text())",
            "gain": "2.0",
        },
        "from lazy_of_test import GAIN as gain",
    ),
}
SOURCE = """
from test_touched import Net
class Own(Net):
    def gain(self):
        {line}
        return gain
"""


@pytest.fixture
def fresh(here: Path) -> Iterator[Callable[[], Any]]:
    """Imports the user's network anew, as another process does."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0].endswith("_of_test")]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def imported() -> Any:
        forget()
        return importlib.import_module("net_of_test").Own()

    yield imported
    forget()


@pytest.mark.parametrize("kind", IMPORTS)
def test_a_module_that_forward_imports_first_is_in_the_key(
    kind: str, here: Path, fresh: Callable[[], Any], data: ArrayDataset
) -> None:
    files, line = IMPORTS[kind]
    for name, text in files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    (here / "net_of_test.py").write_text(SOURCE.format(line=line))
    before = evaluated(fresh(), data, here / "results")
    assert before.counts["clean_error"] == 0
    assert "not_reusable" not in {flag.name for flag in before.flags}
    # In another process, and in this one where the module is loaded now.
    assert evaluated(fresh(), data, here / "results") == before
    again = sys.modules["net_of_test"].Own()
    assert evaluated(again, data, here / "results") == before
    for name, text in files.items():
        (here / name).write_text(text.replace("2.0", "-2.0"))
    after = evaluated(fresh(), data, here / "results")
    assert after.counts["clean_error"] == len(data)


def test_a_module_that_no_pass_has_imported_yet_is_in_the_key_by_its_source(
    here: Path, fresh: Callable[[], Any]
) -> None:
    """A branch that runs for other inputs than those that are tried out."""
    (here / "lazy_of_test.py").write_text("GAIN = 2.0")
    line = "gain = 1.0\n        if self.late:\n            from lazy_of_test import GAIN as gain"
    (here / "net_of_test.py").write_text(SOURCE.format(line=line))
    before = code_identity(fresh())
    assert before == code_identity(fresh())
    assert before.unique_because == ()
    (here / "lazy_of_test.py").write_text("GAIN = 3.0")
    assert code_identity(fresh()) != before
    assert "lazy_of_test" not in sys.modules


def made_by(body: str, known: dict[str, Any]) -> nn.Module:
    space: dict[str, Any] = dict(known)
    exec(f"def gain(self):\n    return {body}", space)
    return own(space["gain"])


@pytest.mark.parametrize(
    "names", [{}, {"__name__": None}, {"__name__": "torch"}, {"__name__": "math"}]
)
def test_what_generated_code_mentions_is_followed(names: dict[str, Any]) -> None:
    def helper(value: float) -> Callable[[], float]:
        return lambda: value

    one, two = (
        code_identity(made_by("helper()", {**names, "helper": helper(value)})) for value in (1, 2)
    )
    assert one != two
    assert one == code_identity(made_by("helper()", {**names, "helper": helper(1)}))
    assert one.unique_because == ()


def scaled(inputs: Tensor) -> Tensor:
    return inputs * SCALE


SCALE = 2.0


def test_functions_that_a_symbolic_trace_keeps_are_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Inner(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + 1

    def traced() -> nn.Module:
        module = torch.fx.symbolic_trace(Inner())
        (added,) = (n for n in module.graph.nodes if n.op == "call_function")
        with module.graph.inserting_after(added):
            after = module.graph.call_function(scaled, (added,))
        added.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
        module.recompile()
        return module

    before = code_identity(traced())
    assert before == code_identity(traced())
    monkeypatch.setitem(globals(), "SCALE", -2.0)
    assert code_identity(traced()) != before


def test_what_users_put_into_libraries_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: list[tuple[Any, str, Callable[[nn.Module], Any]]] = [
        (math, "pi", lambda self: math.pi),
        (torch, "my_shift", lambda self: torch.my_shift),  # type: ignore[attr-defined]
        (builtins, "MINE", lambda self: MINE),  # type: ignore[name-defined]  # noqa: F821
        (builtins, "mine", lambda self: mine()),  # type: ignore[name-defined]  # noqa: F821
    ]
    for place, name, gain in modules:
        found = set()
        for value in (1.0, 2.0):
            given: Any = value if name != "mine" else (lambda value=value: value)
            monkeypatch.setattr(place, name, given, raising=False)
            found.add(code_identity(own(gain)))
        assert len(found) == 2


def test_a_function_of_others_in_torchs_place_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = code_identity(nn.ReLU())
    found = {plain}
    for sign in (1, -1):
        monkeypatch.setattr(nn.functional, "relu", lambda x, inplace=False, s=sign: s * x)
        found.add(code_identity(nn.ReLU()))
    assert len(found) == 3
