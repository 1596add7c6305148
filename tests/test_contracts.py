"""The arrows between the rooms, and what each may cost to import."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TORCH_FREE = (
    "robench",
    "robench.cli.main",
    "robench.cli.publishing",
    "robench.cli.requests",
    "robench.cli.stores",
    "robench.errors",
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
    "robench.reporting.plots",
    "robench.regression_check",
    "robench.pytest_plugin",
    "robench.models.zoo",
    "robench.attacks.suites",
    "robench.defenses.catalogue",
)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_import_linter_keeps_the_arrows():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True) == 0


def test_no_torch_where_none_is_needed():
    code = (
        "import importlib, sys\n"
        f"for name in {TORCH_FREE!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts_light():
    # pydantic and Rich may come along with Typer.
    heavy = ("torch", "pandas", "matplotlib", "scipy", "pyarrow", "robench.records")
    code = (
        "import sys\n"
        "from robench.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert "leaderboard" in done.stdout


def test_help_answers_at_once():
    # The best of several, as other work on the machine is no fault of robench.
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "robench", "--help"], capture_output=True, check=False
        )
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(times) < 0.5


@pytest.mark.parametrize("command", ["", "run", "check", "results", "zoo", "train"])
def test_every_help_does_without_torch(command):
    words = [*command.split(), "--help"]
    code = (
        "import sys\n"
        "from robench.cli.main import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr
