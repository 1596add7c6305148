"""The gate's answer for CI, and what a format refuses."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from export_material import material
from invoke_cli import invoke
from record_factory import make_stored

from robench import regression_check as gate
from robench.errors import UnknownNameError, UsageError
from robench.exports import FORMATS
from robench.reporting.model_results import collect

LETTERS = {
    "base": "S" * 375 + "B" * 125,
    "same": "S" * 375 + "B" * 125,
    "bad": "S" * 200 + "B" * 300,
}


@pytest.fixture(scope="module")
def outcomes():
    """The gate's answer by what it says: not worse, worse, cannot tell."""
    results = {name: collect([make_stored(text, model=name)])[0] for name, text in LETTERS.items()}
    # The worst class is a bootstrap of seconds.
    policy = gate.Policy.model_validate(
        {"worst_class_robust_acc": {"enabled": False, "margin": 10.0}}
    )
    small = [collect([make_stored("SB", model=name)])[0] for name in ("one", "two")]
    return {
        0: gate.check(results["same"], results["base"], policy),
        1: gate.check(results["bad"], results["base"], policy),
        2: gate.check(*small, policy),
    }


def test_sarif_holds_what_the_gate_says(outcomes):
    for code, outcome in outcomes.items():
        content = json.loads(gate.check_sarif(outcome, Path("results/a b.csv")))
        assert content["version"] == "2.1.0"
        (run,) = content["runs"]
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert len(set(rules)) == len(rules)
        assert run["invocations"][0]["exitCode"] == code
        for result in run["results"]:
            assert rules[result["ruleIndex"]] == result["ruleId"]
            # SARIF 3.27.10: what does not fail has no level.
            assert (result["kind"] == "fail") == (result["level"] in ("error", "warning"))
            (place,) = result["locations"]
            assert place["physicalLocation"]["artifactLocation"]["uri"] == "results/a%20b.csv"
        level = next(r["level"] for r in run["results"] if r["ruleId"] == "robust_acc")
        assert level == {0: "none", 1: "error", 2: "warning"}[code]


def test_sarif_of_an_absolute_folder_is_an_address(outcomes, tmp_path):
    (run,) = json.loads(gate.check_sarif(outcomes[0], tmp_path / "x.csv"))["runs"]
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == (tmp_path / "x.csv").as_uri()


def test_problems_are_errors(outcomes):
    candidate, baseline = (
        collect([make_stored(text, model=text)])[0] for text in ("S" * 8 + "E", "S" * 8 + "B")
    )
    (run,) = json.loads(gate.check_sarif(gate.check(candidate, baseline), Path("x")))["runs"]
    (problem,) = (r for r in run["results"] if r["ruleId"] == "problem")
    assert problem["level"] == "error"
    assert "errored" in problem["message"]["text"]


def test_the_gates_formats_need_a_candidate_and_a_baseline(tmp_path):
    records = [(name, "a", "SSSB") for name in ("one", "two")]
    given = material(tmp_path, *records, kept=True, models=("one",), against="two")
    suite = ElementTree.fromstring(str(FORMATS["junit"].write(given, None)))
    assert suite.get("name") == "robench check one"
    assert json.loads(str(FORMATS["sarif"].write(given, None)))["version"] == "2.1.0"
    with pytest.raises(UsageError, match="no baseline is named"):
        FORMATS["sarif"].write(material(tmp_path / "b", *records, models=("one",)), None)
    with pytest.raises(UsageError, match="0 are named"):
        FORMATS["junit"].write(material(tmp_path / "c", *records, against="two"), None)
    with pytest.raises(UnknownNameError, match="unknown model 'tvo'"):
        FORMATS["junit"].write(
            material(tmp_path / "d", *records, kept=True, models=("one",), against="tvo"), None
        )


def test_a_choice_that_a_format_does_not_look_at_is_refused(tmp_path):
    given = material(tmp_path, ("one", "a", "SB"), intervals=True)
    with pytest.raises(UsageError, match=r"--intervals says nothing.*--columns, --samples"):
        FORMATS["csv"].write(given, None)


def test_the_command_writes_prints_and_says_what_is_missing(tmp_path):
    folder = material(tmp_path, ("one", "a", "SSSB"), ("two", "a", "SSBB"), kept=True).store.folder
    done = invoke("export", "--results", folder, "--format", "latex")
    assert done.code == 0
    assert r"\textbf{75.0} \\" in done.out
    done = invoke(
        "export", "one", "--results", folder, "--format", "robustbench", "--out", tmp_path
    )
    assert done.out.splitlines() == [str(tmp_path / "digits" / "Linf-0.2" / "one.json")]
    assert "robench: note: link stays empty for one: it has no card" in done.err
    done = invoke("export", "--results", folder, "-o", tmp_path / "t.csv")
    assert done.out.splitlines() == [str(tmp_path / "t.csv")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "latx"], "Did you mean 'latex'?"),
        (["--format", "parquet"], "cannot be printed. Name it with --out"),
        (["--columns", "modle"], "Did you mean 'model'?"),
        (["--digits", "9"], "from 0 to 6"),
        (["nobody"], "unknown model 'nobody'"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, words):
    folder = material(tmp_path, ("one", "a", "SB"), kept=True).store.folder
    before = sorted(tmp_path.rglob("*"))
    done = invoke("export", "--results", folder, *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert words in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_every_format_is_listed():
    listed = invoke("export", "--formats").out
    assert [line.split()[0] for line in listed.splitlines()[1:]] == list(FORMATS)


def test_where_the_old_command_went():
    done = invoke("results", "export", "--out", "x.csv", "--format", "parquet")
    assert done.code == 2
    assert "`robench export`" in done.err
