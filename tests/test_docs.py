"""What the documents show works as written."""

from __future__ import annotations

import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import typer.main
from torch import nn

import robench
from robench.attacks import build_attack
from robench.attacks.suites import list_suites, load_suite
from robench.cli.main import app
from robench.errors import UsageError
from robench.regression_check import Policy
from robench.results import Store
from robench.threat_models import ThreatModel

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Every ``robench …`` line of a code block, with its page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S):
            joined = block.replace("\\\n", " ")
            found += [
                (page.name, line.strip())
                for line in joined.splitlines()
                if line.strip().startswith("robench ") and "…" not in line
            ]
    return found


def test_links_lead_somewhere():
    lost = [
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert lost == []


def test_there_are_commands_to_check():
    assert len(commands()) >= 4


def parse(group, words):
    """Without running it: a wrong option or command raises."""
    with group.make_context("robench", list(words), resilient_parsing=False) as context:
        name, command, rest = group.resolve_command(context, context._protected_args + context.args)
        while hasattr(command, "resolve_command"):
            with command.make_context(name, rest, parent=context) as inner:
                name, command, rest = command.resolve_command(
                    inner, inner._protected_args + inner.args
                )
        command.make_context(name, rest, parent=context).close()


def test_commands_parse():
    group, wrong = typer.main.get_command(app), []
    for page, line in commands():
        try:
            parse(group, shlex.split(re.sub(r"[|>#].*", "", line))[1:])
        except Exception as error:
            wrong.append((page, line, str(error)))
    assert wrong == []


def test_the_suite_of_ones_own(tmp_path):
    content, foreign = blocks("docs/suites.md", "toml")
    (tmp_path / "foreign.toml").write_text(foreign)
    with pytest.raises(UsageError, match="my_package"):
        load_suite(tmp_path / "foreign.toml")
    assert len(load_suite(tmp_path / "foreign.toml", trust_code=True).attacks) == 2
    (tmp_path / "mine.toml").write_text(content)
    suite = load_suite(tmp_path / "mine.toml")
    assert len(suite.attacks) == len(load_suite("quick").attacks) + 3
    for spec in suite.for_norm("Linf"):
        for stage in spec.stages or (spec,):
            if not stage.attack.startswith("art:"):
                build_attack(stage, ThreatModel.parse("Linf-8/255"))


def test_every_suite_is_described():
    text = (ROOT / "docs/suites.md").read_text()
    assert [name for name in list_suites() if f"`{name}`" not in text] == []


def test_the_policy(tmp_path):
    (content,) = blocks("docs/regression-gate.md", "toml")
    (tmp_path / "policy.toml").write_text(content)
    policy = Policy.load(tmp_path / "policy.toml")
    assert set(tomllib.loads(content)) <= set(Policy.model_fields)
    assert policy.robust_acc.margin == 1.0
    assert not policy.attention_deviation.enabled


def test_the_page_on_python(tmp_path, monkeypatch, capsys, saved_unseen):
    monkeypatch.chdir(tmp_path)
    # What the doctor sees and what a folder's figures show have tests of their own.
    monkeypatch.setattr("robench.evaluation.prepared_model.examine", lambda *_, **__: [])
    monkeypatch.setattr("robench.reporting.plots.render.reports", lambda kind: {})
    (code,) = blocks("docs/python.md", "python")
    names = {}
    # Fewer samples than in the text, whose numbers are not the point.
    exec(code.replace("n=20", "n=4").replace("range(20)", "range(4)"), names)
    for found in (names["adversarial"], names["worst"]):
        assert 0.1 < (found - names["inputs"]).abs().max() <= 0.2 + 1e-6
    assert names["board"]["model"].tolist() == ["pgd-at"]
    assert set(names["both"]["model"]) == {"pgd-at", "trades"}
    assert names["answer"].candidate == "trades"
    said = capsys.readouterr().out
    assert "pgd_20_acc" in said
    assert r"\bottomrule" in said


def leaf_commands() -> list[str]:
    """All that follows ``robench`` on a command line, as ``zoo list``."""
    tree = typer.main.get_command(app)
    found = []
    for name, command in tree.commands.items():
        inner = getattr(command, "commands", None)
        if inner is not None:
            inner = [leaf for leaf in inner if not inner[leaf].hidden]
        found += [name] if inner is None else [f"{name} {leaf}" for leaf in inner]
    return found


def test_the_page_on_python_has_a_call_for_every_command():
    """Its names are there: an attribute of the interface, or of a module."""
    text = (ROOT / "docs/python.md").read_text()
    rows = re.findall(r"^\| (`robench [^|]*) \| ([^|]*) \|$", text, re.M)
    told = {
        name.removeprefix("robench ") for row, _ in rows for name in re.findall(r"`(.*?)`", row)
    }
    assert {name for name in leaf_commands() if name not in told} == set()
    for _, calls in rows:
        names = re.findall(r"\b(robench(?:\.\w+)+)", calls)
        assert names
        for name in names:
            if not name.endswith(".toml"):
                pkgutil.resolve_name(name)


def test_a_module_and_tensors_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    torch.manual_seed(0)
    names = {
        "my_module": nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5)
        ),
        "inputs": torch.rand(10, 3, 8, 8),
        "labels": torch.arange(10) % 5,
    }
    # The suite in the text takes minutes.
    exec(code.replace('"standard"', '"quick"'), names)
    assert (tmp_path / "accuracy.png").is_file()
    assert set(names["result"].to_frame()["attack"]) == {"fgsm", "pgd-20"}
    attacks = {stored.record.attack.name for stored in Store("results").records()}
    assert attacks == {"fgsm", "pgd-20"}


def test_the_reference_has_the_whole_interface():
    told = re.findall(r"^::: robench\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted({*told, "__version__"} - {"errors"}) == sorted(robench.__all__)


def test_reading_records_as_shown(tmp_path, monkeypatch, capsys):
    from record_factory import make_record, make_samples

    monkeypatch.chdir(tmp_path)
    samples = make_samples("SSB")
    Store("results").write(make_record(samples), samples)
    (code,) = blocks("docs/records.md", "python")
    exec(code, {})
    assert "survived" in capsys.readouterr().out


def test_the_gate_from_python_as_shown(tmp_path, monkeypatch, capsys):
    from record_factory import make_record, make_samples

    monkeypatch.chdir(tmp_path)
    samples = make_samples("SSB")
    for model in ("candidate", "release"):
        Store("results").write(make_record(samples, model=model), samples)
    (code,) = blocks("docs/regression-gate.md", "python")[-1:]
    exec(code, {})
    assert "release" in capsys.readouterr().out
