"""The fixture is there where robench is installed, and costs other test suites nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUITE = """
import sys

def test_nothing_heavy_is_loaded(request):
    assert request.config.pluginmanager.has_plugin("robench.pytest_plugin")
    assert "robench.pytest_plugin" in sys.modules
    heavy = {"torch", "numpy", "pandas", "pydantic", "scipy", "matplotlib"}
    assert not heavy & set(sys.modules)

def test_the_fixture_is_there(robench_check):
    assert robench_check.results.name == "elsewhere"
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the entry point of pyproject.toml is installed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"{name} = {target}" for name, target in declared["pytest11"].items()]
    distribution = tmp_path / "site" / "robench_test-1.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: robench-test\nVersion: 1\n"
    )
    (distribution / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
    paths = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""}


@pytest.mark.parametrize(
    "named",
    [
        "not",
        pytest.param("on the command line", marks=pytest.mark.slow),
        pytest.param("in conftest.py", marks=pytest.mark.slow),
    ],
)
def test_the_plugin_loads_by_itself_and_is_light(
    tmp_path: Path, installed: dict[str, str], named: str
) -> None:
    place = tmp_path / "suite"
    place.mkdir()
    (place / "test_theirs.py").write_text(SUITE)
    if named == "in conftest.py":
        (place / "conftest.py").write_text('pytest_plugins = ["robench.pytest_plugin"]\n')
    more = ["-p", "robench.pytest_plugin"] if named == "on the command line" else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"),
            *(*more, "--robench-results", "elsewhere", "."),
        ],
        cwd=place,
        env=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_folder_that_is_not_there_is_refused_as_by_the_command(tmp_path: Path) -> None:
    from robench.errors import StoreError
    from robench.pytest_plugin import RobenchCheck

    with pytest.raises(StoreError, match="there is no such results folder"):
        RobenchCheck(tmp_path / "nowhere")("candidate", against="baseline")
