"""What CONTRIBUTING says of additions holds: the example package adds one of each from outside."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from attack_models import DoubleInside, PlainQuery, TinyCNN, images, predictions, slots_for
from forks import in_a_fork
from invoke_cli import invoke
from outside_package import install

from robench.attacks.catalogue import ATTACKS
from robench.datasets import load_dataset, load_training_splits
from robench.datasets.catalogue import DATASETS
from robench.doctor.catalogue import CHECKS
from robench.errors import UsageError
from robench.metric_catalogue import METRIC_REGISTRY, METRICS
from robench.models import build_architecture
from robench.models.catalogue import ARCHITECTURES
from robench.records import ArchitectureSpec
from robench.reporting.catalogue import REPORTS, reports
from robench.reporting.plots import render
from robench.results import Store
from robench.threat_models import ThreatModel

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example_package"

SUITE = """
[[attacks]]
name = "momentum"
attack = "mi-fgsm"
params = { steps = 5 }

[[attacks]]
name = "written-out"
attack = "robench_example.attack:MIFGSM"
params = { steps = 5 }
"""


SLOW_TO_LOAD = ("torch._dynamo", "sympy", "sklearn", "torchvision")


@dataclass(frozen=True)
class Session:
    """What the commands left."""

    folder: Path
    results: Path
    printed: dict[str, Any]
    """Exit code, output and errors of each command."""


def install_example(folder: Path) -> None:
    """Leave the example package in ``folder`` as pip would."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    files = {
        path.relative_to(EXAMPLE).as_posix(): path.read_text()
        for path in (EXAMPLE / "robench_example").glob("*.py")
    }
    install(folder, project["name"], project["version"], project["entry-points"], files)


def follow(site: Path, commands: dict[str, list[str]]) -> dict[str, Any]:
    """What the commands print, and what the package's data and network are, in this process.

    Registries look for entry points once; these are asked again. Of the figures only the package's own
    is rendered, and of robench's none is made.
    """
    os.chdir(ROOT)
    sys.path.insert(0, str(site))
    for registry in (ATTACKS, METRIC_REGISTRY, CHECKS, DATASETS, ARCHITECTURES, REPORTS):
        vars(registry).pop("_entry_points", None)
    vars(METRICS).clear()
    figures = reports("figure")
    render.reports = lambda kind: {"broken_by_attack": figures["broken_by_attack"]}  # type: ignore[assignment]
    printed: dict[str, Any] = {}
    for name, words in commands.items():
        done = invoke(*words)
        printed[name] = [done.code, done.out, done.err]
    data = load_dataset("bright-or-dark", size=6)
    parts = load_training_splits("bright-or-dark")
    printed["data"] = [data.name, list(data.input_shape), [len(part) for part in parts]]
    network: Any = build_architecture(ArchitectureSpec(name="one-layer"), 3, 1)
    printed["network"] = list(network.layer.weight.shape)
    written = "robench_example.data:load_bright_or_dark"
    with pytest.raises(UsageError) as refusal:
        load_dataset(written)
    printed["untrusted data"] = str(refusal.value)
    printed["trusted data"] = load_dataset(written, trust_code=True).name
    return printed


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Every command in one process that has the package on its path."""
    folder = tmp_path_factory.mktemp("outside")
    install_example(folder / "site")
    suite = folder / "mine.toml"
    suite.write_text(SUITE)
    results = folder / "results"
    run = ["run", "standard", "--suite", str(suite), "--n", "16", "--results", str(results)]
    commands = {
        "attacks": ["attacks", "--json"],
        "refused": run,
        "doctor": ["doctor", "standard", "--n", "16", "--json"],
        "run": [*run, "--trust-code", "--workers", "1", "--device", "cpu"],
    }
    printed = in_a_fork(lambda: follow(folder / "site", commands))
    assert printed["run"][0] == 0, printed["run"]
    return Session(folder, results, printed)


def test_adding_an_attack(session: Session) -> None:
    """Listed with its origin, run by a suite, a column of the leaderboard; code needs trust."""
    listed = json.loads(session.printed["attacks"][1])["attacks"]
    assert listed["mi-fgsm"] == "from robench-example 1.0"
    exit_code, _, said = session.printed["refused"]
    assert exit_code == 2
    assert "'robench_example.attack:MIFGSM' is code" in said
    board = pd.read_csv(session.results / "leaderboard.csv")
    # The undefended network: most samples break, and the two entries are one attack.
    assert board["momentum_acc"].tolist() == board["written_out_acc"].tolist()
    assert board["momentum_acc"][0] < board["clean_acc"][0] - 50


def test_adding_a_metric(session: Session) -> None:
    board = pd.read_csv(session.results / "leaderboard.csv")
    records = {item.record.attack.name: item.record for item in Store(session.results).records()}
    means = [
        records["momentum"].metrics[f"attention_peak_{part}"].mean
        for part in ("clean", "adv", "increase")
    ]
    clean, adv, more = (math.nan if mean is None else mean for mean in means)
    assert 1 / 64 < clean < 1
    assert more == pytest.approx(adv - clean, abs=1e-6)
    assert board["attention_peak_increase"][0] == pytest.approx(more, abs=1e-4)
    assert "attention_peak_clean" not in board
    assert "Attention peak (increase)" in (session.results / "index.html").read_text()


def test_adding_a_check(session: Session) -> None:
    """The check finds what it looks for, and the record of a run keeps it as a flag."""
    found = json.loads(session.printed["doctor"][1])["findings"]
    assert [finding["name"] for finding in found] == ["overconfident"]
    assert "16 samples are predicted with more than 99 %" in found[0]["evidence"]
    flags = pd.read_csv(session.results / "leaderboard.csv")["validity"][0]
    assert "overconfident(note)" in flags


@pytest.mark.slow
def test_a_run_loads_nothing_large_that_it_does_not_need(tmp_path: Path) -> None:
    """As the doctor does not, in tests/test_trust.py."""
    words = ["run", "standard", "--suite", "quick", "--n", "4", "--results", str(tmp_path)]
    code = (
        "import sys\n"
        "from robench.cli.main import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "finally:\n"
        f"    sys.exit(str([name for name in {SLOW_TO_LOAD!r} if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert (tmp_path / "leaderboard.csv").is_file()


def test_adding_a_data_set(session: Session) -> None:
    assert session.printed["data"] == ["bright-or-dark", [1, 6, 6], [90, 10]]
    assert "--trust-code" in session.printed["untrusted data"]
    assert session.printed["trusted data"] == "bright-or-dark"


def test_adding_an_architecture(session: Session) -> None:
    assert session.printed["network"] == [3, 64]


def test_adding_a_report(session: Session) -> None:
    """A table that is a file and a section of the page, and a figure in the gallery."""
    table = pd.read_csv(session.results / "broken_by.csv")
    board = pd.read_csv(session.results / "leaderboard.csv")
    assert table["attack"].tolist() == ["momentum", "written-out"]
    broken = (board["clean_acc"][0] - board["momentum_acc"][0]) / 100 * board["n"][0]
    assert table["broken"].tolist() == pytest.approx([broken] * 2, abs=0.01)
    page = (session.results / "index.html").read_text()
    assert "<h2>Broken by</h2>" in page
    (figure,) = (session.results / "plots").rglob("broken_by_attack.png")
    assert figure.with_suffix(".svg").is_file()


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mi_fgsm_walks_as_its_paper_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    """g = decay · g + ∇/|∇|₁, x = clip(x + ε/T · sign g), written out here sample by sample."""
    install_example(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from robench_example.attack import MIFGSM

    model = DoubleInside(TinyCNN(classes=6, channels=2, seed=3))
    inputs = images(8, (2, 6, 6), seed=5)
    labels = predictions(model, inputs)
    steps, eps = 10, 0.05
    query = PlainQuery(model)
    attack = MIFGSM(ThreatModel.of("Linf", eps), steps=steps, decay=decay)
    state = attack.start(query, slots_for(model, inputs, labels))
    while not bool(attack.finished(state).all()):
        state = attack.step(query, state)
    assert len(query.seen) == steps + 1
    for index, (clean, label) in enumerate(zip(inputs, labels, strict=True)):
        point, momentum = clean.clone(), torch.zeros_like(clean)
        for step in range(steps + 1):
            torch.testing.assert_close(query.seen[step][index], point, rtol=0, atol=2e-6)
            leaf = point.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(leaf[None]), label[None])
            (slope,) = torch.autograd.grad(loss, leaf)
            momentum = decay * momentum + slope / slope.abs().sum()
            moved = point + eps / steps * momentum.sign()
            point = torch.clamp(moved, clean - eps, clean + eps).clamp(0, 1)
