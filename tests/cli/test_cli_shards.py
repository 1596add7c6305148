"""Shards through the command line: parts in, one leaderboard out; what makes no sense is refused."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from invoke_cli import invoke

from robench.records import AttackSpec, Suite
from robench.results import Store

pytestmark = pytest.mark.usefixtures("unexamined")

PAGE = Path(__file__).parents[2] / "docs" / "shards.md"
MODEL = ("pgd-at", "--suite", "quick", "--n", 12, "--device", "cpu")


def test_the_matrix_of_the_documentation(tmp_path, monkeypatch):
    """Every command of the workflow, as written but for the number of samples."""
    monkeypatch.chdir(tmp_path)
    (workflow,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    run, merge, board = re.findall(r"- run: robench (.*)", workflow)
    shards = re.search(r"shard: \[(.*)\]", workflow)
    assert shards is not None
    for shard in shards[1].split(", "):
        line = run.replace("${{ matrix.shard }}", shard).replace("--n 60", "--n 3")
        done = invoke(*shlex.split(line.replace("--results part", f"--results parts/part-{shard}")))
        assert done.code == 0, done.err
        assert f"part {shard} of 3" in done.out
    folders = [str(path) for path in sorted(Path("parts").glob("part-*"), reverse=True)]
    done = invoke(*(w for word in shlex.split(merge) for w in (folders if "*" in word else [word])))
    assert done.code == 0, done.err
    assert "2 records joined" in done.err
    assert invoke(*shlex.split(board), "--no-plots").code == 0
    found = pd.read_csv("results/leaderboard.csv")
    assert (list(found["model"]), list(found["n"])) == (["pgd-at"], [3])


def test_what_is_missing_is_listed(tmp_path, monkeypatch):
    """After one task of the array of the documentation, as written but for suite and samples."""
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    command = script[script.index("robench run") + len("robench") :].replace("\\\n", " ")
    task = {"MODEL": "pgd-at", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}
    for name, value in task.items():
        monkeypatch.setenv(name, value)
    line = os.path.expandvars(command).replace("standard", "quick").replace("10000", "12")
    done = invoke(*shlex.split(line))
    assert done.code == 0, done.err
    assert "part 2 of 3" in done.err
    assert "robust" not in done.err
    listed = invoke("results", "list")
    assert "parts: fgsm on digits/Linf-0.2/pgd-at" in listed.out
    assert "12 samples" in listed.out
    assert "parts 1, 3 of 3 are missing" in listed.out
    content = invoke("results", "list", "--json").json
    assert [job["missing"] for job in content["parts"]] == [[1, 3], [1, 3]]
    assert content["records"] == []
    verified = invoke("results", "verify", "--json").json
    assert [item["sound"] for item in verified] == [True, True]
    done = invoke("results", "merge")
    assert done.code == 2
    assert done.err.startswith("robench: error: ")
    assert "parts 1, 3 of 3 are missing" in done.err
    assert Store("results").keys() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard", "0/4"), "shard '0/4' is no part"),
        (("--shard", "5/4"), "shard '5/4' is no part"),
        (("--shard", "a/b"), "Write K/N"),
        (("--shard", "1/13"), "12 samples make no 13 parts"),
        (("--shard", "1/2", "--suite", "fast"), "fast has an audit"),
        (("--shard", "1/2", "--suite", "reference"), "another library's attack on whole batches"),
        (("--shard", "1/2", "--validate"), "Merge the shards first"),
        (("--executor", "ray", "--validate"), "run `robench validate` afterwards"),
        (("--executor", "ray", "--shard", "1/2"), "divides jobs into parts itself"),
        (("--executor", "ray", "--trace"), "keeps no trace"),
        (("--executor", "ray", "--shards", "13"), "12 samples make no 13 parts"),
        (("--executor", "rey"), "unknown executor 'rey'"),
        (("--cpus-per-task", "0"), "a task takes 0 CPUs"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, words):
    done = invoke("run", *MODEL, "--results", tmp_path, *options)
    assert done.code == 2
    assert done.err.startswith("robench: error: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_parts_is_named(tmp_path):
    done = invoke("results", "merge", tmp_path, "--results", tmp_path / "out")
    assert done.code == 2
    assert "no parts are there" in done.err
    assert str(tmp_path) in done.err


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch):
    for name in ("_SECONDS", "_STRETCHES_SECONDS"):
        monkeypatch.setattr(f"robench.evaluation.plan.{name}", 0.001)
    monkeypatch.setattr("robench.evaluation.plan._FEWEST_STEPS", 1)
    short = Suite(name="short", attacks=(AttackSpec(name="one", attack="pgd"),))
    monkeypatch.setattr("robench.evaluation.plan.load_suite", lambda _: short)
    folder = tmp_path / "results"
    done = invoke("run", *MODEL, "--n", 4, "--results", folder, "--dry-run", "--json")
    assert done.code == 0, done.err
    (plan,) = done.json["models"]
    assert [job["attack"] for job in plan["jobs"]] == ["fgsm", "pgd-20"]
    assert plan["n"] == 4
    assert plan["seconds"] > 0
    assert set(done.json["seconds_by_shards"]) == {"1", "4", "16", "64"}
    assert not folder.exists()
