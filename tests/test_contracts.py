"""The arrows between the rooms, and what each may cost to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from record_factory import make_record, make_samples

from robench.models.zoo import zoo_cards
from robench.reporting.publish import publish
from robench.results import Store

ROOT = Path(__file__).parents[1]

TORCH_FREE = (
    "robench",
    "robench.cli.main",
    "robench.cli.output",
    "robench.reporting.publish",
    "robench.errors",
    "robench.formatting",
    "robench.request",
    "robench.registry",
    "robench.threat_models",
    "robench.records",
    "robench.metric_catalogue",
    "robench.results",
    "robench.statistics",
    "robench.reporting.leaderboard",
    "robench.reporting.compare",
    "robench.reporting.export",
    "robench.reporting.page",
    "robench.reporting.plots.render",
    "robench.exports",
    "robench.exports.trackers",
    "robench.reporting.plots.one_figure",
    "robench.reproduction.papers",
    "robench.progress",
    "robench.stored_results",
    "robench.regression_check",
    "robench.pytest_plugin",
    "robench.models.zoo",
    "robench.attacks.suites",
    "robench.defenses.catalogue",
)


HEAVY = ("torch", "pandas", "matplotlib", "scipy", "pyarrow", "robench.records")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_import_linter_keeps_the_arrows():
    # In a process of its own: it disables the loggers that it finds.
    done = _python(
        "from importlinter.cli import lint_imports\n"
        f"raise SystemExit(lint_imports(config_filename={str(ROOT / '.importlinter')!r}, "
        "no_cache=True))"
    )
    assert done.returncode == 0, done.stdout


def _commands(commands: Sequence[Sequence[str]], cwd: Path, first: str = "") -> dict[str, Any]:
    """Run ``first``, then commands one after the other, in one fresh interpreter.

    Returns:
        Their exit codes, and which heavy modules were loaded at the end.
    """
    code = (
        f"{first}"
        "import json, sys\n"
        "from robench.cli.main import main\n"
        "codes = []\n"
        f"for command in {[list(c) for c in commands]!r}:\n"
        "    try:\n"
        "        main(command)\n"
        "    except SystemExit as end:\n"
        "        codes.append(end.code or 0)\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print()\n"
        "print(json.dumps({'codes': codes, 'loaded': loaded}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_every_help_starts_light(tmp_path):
    words = ["", "run", "check", "compare", "leaderboard", "results", "zoo", "zoo add", "train"]
    words += ["doctor"]
    commands = [[*line.split(), "--help"] for line in words]
    # Where nothing has changed, no record is read either.
    (tmp_path / "results").mkdir()
    publish(Store(tmp_path / "results"), cards=zoo_cards())
    report = _commands([*commands, ["leaderboard"]], tmp_path)
    assert report == {"codes": [0] * (len(words) + 1), "loaded": []}


def test_help_answers_at_once():
    # Processor time, as other work on the machine is no fault of robench; the best of three.
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "robench", "--help"], capture_output=True, check=True)
        after = os.times()
        children = (after.children_user, after.children_system)
        if sum(children) - before.children_user - before.children_system < 0.5:
            return
    pytest.fail("help takes half a second of processor time")


IMPORTS = (
    "import importlib, sys\n"
    "import robench.reporting.leaderboard\n"
    "assert 'matplotlib' not in sys.modules, 'a table needs no figures'\n"
    f"for name in {TORCH_FREE!r}:\n"
    "    importlib.import_module(name)\n"
    "    assert 'torch' not in sys.modules, name\n"
    # Most of what figures cost is to write them, so only the first is written; and .importlinter
    # knows that no report of robench's imports torch, so that some of them are enough.
    "import robench.reporting.plots.style as style\n"
    "style._DPI = 40\n"
    "written = style.save\n"
    "def save(figure, stem):\n"
    "    style.save = lambda _, stem: [\n"
    "        stem.with_name(stem.name + suffix).write_bytes(b'') for suffix in ('.png', '.svg')\n"
    "    ]\n"
    "    return written(figure, stem)\n"
    "style.save = save\n"
    "import robench.reporting.plots.render as render\n"
    "every = render.reports\n"
    "render.reports = lambda kind: dict([*every(kind).items()][:2])\n"
)


def test_neither_imports_nor_commands_on_stored_records_load_torch(tmp_path):
    store = Store(tmp_path / "results")
    for model, letters in (("one", "SSSSSBBC"), ("two", "SSBBBBBC")):
        samples = make_samples(letters)
        store.write(make_record(samples, model=model), samples)
    commands = {
        "leaderboard": 0,
        "leaderboard --no-plots --suite quick": 0,
        "compare one two": 0,
        "check one --against two": 2,  # eight samples can tell nothing
        "results list": 0,
        "export --samples --out all.csv": 0,
        "export --format latex": 0,
        "export --format robustbench --out rb": 0,
        "export one --against two --format sarif": 0,
        "results prune": 0,
        "zoo list": 0,
        "attacks": 0,
    }
    report = _commands([line.split() for line in commands], tmp_path, first=IMPORTS)
    assert report["codes"] == list(commands.values())
    assert "torch" not in report["loaded"]
    assert (tmp_path / "results" / "index.html").is_file()
