from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from forks import in_a_fork
from record_factory import make_record, make_samples, make_stored

from robench.errors import UsageError
from robench.records import MetricSummary
from robench.regression_check import (
    CheckResult,
    CriterionResult,
    Policy,
    Verdict,
    check,
    check_json,
    check_junit,
    check_markdown,
    leaderboard_row,
)
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.reporting.model_results import ModelResult, collect
from robench.results import Store
from robench.statistics import tango_interval
from robench.statistics.paired import PairedCounts

LOOSE = Policy.model_validate(
    {"worst_class_robust_acc": {"margin": 60, "required": False}, "clean_acc": {"margin": 5}}
)


def one(letters: str, model: str = "toy", **kwargs: object) -> ModelResult:
    return made(letters, model, **kwargs) if kwargs else plain(letters, model)


def made(letters: str, model: str, **kwargs: object) -> ModelResult:
    (result,) = collect([make_stored(letters, model=model, **kwargs)])  # type: ignore[arg-type]
    return result


plain = cache(made)
"""Of nothing but verdicts; made once for all tests."""


def letters(robust: int, n: int = 500) -> str:
    return "S" * robust + "B" * (n - robust)


def part(result: CheckResult, quantity: str) -> CriterionResult:
    return next(item for item in result.criteria if item.quantity == quantity)


# --- answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [0, 1, 250, 499, 500])
def test_a_model_against_itself_passes(robust: int) -> None:
    values = {"attention_deviation": np.linspace(0, 1, 500)}
    metrics = {"attention_deviation": MetricSummary(mean=0.5)}
    me = one(letters(robust), classes=10, values=values, metrics=metrics)
    result = check(me, me)
    assert result.exit_code == 0
    assert {item.verdict for item in result.criteria} == {Verdict.NOT_WORSE}


def test_a_model_is_not_worse_than_itself_however_small_n_is() -> None:
    me, twin = one("SB"), one("SB", model="twin")
    result = check(me, me)
    assert result.exit_code == 0
    assert any("same weights" in note for note in result.notes)
    # Agreeing on two samples proves nothing of another model.
    assert check(twin, me).exit_code == 2
    crashed = one("SE")
    assert check(crashed, crashed).exit_code == 2


def test_better_passes_and_the_reverse_fails() -> None:
    strong, weak = one(letters(400), model="strong"), one(letters(5), model="weak")
    assert check(strong, weak).exit_code == 0
    result = check(weak, strong)
    assert result.exit_code == 1
    assert part(result, "robust_acc").verdict is Verdict.WORSE
    assert part(result, "robust_acc").loss == pytest.approx(79)
    assert part(result, "clean_acc").verdict is Verdict.NOT_WORSE


def test_three_points_lost_are_caught_where_nothing_is_gained() -> None:
    # 15 samples lost, none gained: the exact test sees it.
    result = check(one(letters(360), model="tuned"), one(letters(375), model="base"), LOOSE)
    assert result.exit_code == 1


def test_three_points_lost_amid_noise_cannot_be_told_and_n_is_said() -> None:
    base = letters(375)
    # 40 lost, 25 gained: the same 3 points.
    tuned = "B" * 40 + "S" * 335 + "S" * 25 + "B" * 100
    result = check(one(tuned, model="tuned"), one(base, model="base"), LOOSE)
    item = part(result, "robust_acc")
    assert item.verdict is Verdict.CANNOT_TELL
    assert result.exit_code == 2
    assert item.n_to_fail is not None
    assert item.n_to_fail > 500
    assert result.n_needed == max(item.n_to_pass or 0, item.n_to_fail)
    text = check_markdown(result)
    assert f"about n = {item.n_to_fail} would confirm" in text


def test_a_small_loss_within_the_margin_passes_even_if_shown() -> None:
    base, tuned = letters(4000, 5000), letters(3990, 5000)
    result = check(one(tuned, model="t"), one(base, model="b"), LOOSE.with_margin(1.0))
    item = part(result, "robust_acc")
    assert item.loss_low > 0
    assert item.verdict is Verdict.NOT_WORSE


@pytest.mark.parametrize("lost, gained", [(0, 0), (2, 0), (9, 4), (30, 30), (25, 10), (12, 0)])
def test_answers_are_those_of_the_tests(lost: int, gained: int) -> None:
    base = letters(300)
    tuned = "B" * lost + "S" * (300 - lost) + "S" * gained + "B" * (200 - gained)
    counts = PairedCounts(300 - lost, gained, lost, 200 - gained)
    policy = Policy.model_validate(
        {n: {"margin": 1, "enabled": False} for n in Policy().criteria if n != "robust_acc"}
    ).with_margin(2.0)
    result = check(one(tuned, model="t"), one(base, model="b"), policy)
    (item,) = result.criteria
    interval = tango_interval(counts, 0.9)
    assert item.loss_high == pytest.approx(-100 * interval.low)
    assert (item.verdict is Verdict.NOT_WORSE) == (interval.low > -0.02)


def test_attention_deviation_is_judged_upwards() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.4, 500)
    metrics = {"attention_deviation": MetricSummary(mean=0.3)}

    def model(name: str, shift: float) -> ModelResult:
        values = {"attention_deviation": base + shift + rng.normal(0, 0.05, 500)}
        return one(letters(300), model=name, values=values, metrics=metrics)

    plain = model("a", 0.0)
    assert part(check(model("b", 0.2), plain), "attention_deviation").verdict is Verdict.WORSE
    assert part(check(model("c", -0.2), plain), "attention_deviation").verdict is Verdict.NOT_WORSE
    close = part(check(model("d", 0.01), plain), "attention_deviation")
    assert close.verdict is Verdict.NOT_WORSE
    assert close.loss == pytest.approx(0.01, abs=0.01)


def test_what_is_not_measured_is_skipped_or_demanded() -> None:
    me = one(letters(300))
    assert part(check(me, me), "attention_deviation").verdict is Verdict.NOT_MEASURED
    strict = Policy.model_validate({"attention_deviation": {"margin": 0.1, "required": True}})
    assert check(me, me, strict).exit_code == 2
    nothing = Policy.model_validate({n: {"margin": 1, "enabled": False} for n in Policy().criteria})
    assert check(me, me, nothing).exit_code == 2


def test_errors_and_missing_attacks_forbid_a_pass() -> None:
    good = one(letters(300), model="base")
    crashed = one("E" + letters(300)[1:], model="crashed")
    for pair in ((crashed, good), (good, crashed)):
        result = check(*pair, LOOSE)
        assert result.exit_code == 2
        assert "1 samples of crashed errored" in check_markdown(result)
    base = collect(
        [make_stored(letters(300), model="base", attack=a) for a in ("pgd-20", "autoattack")]
    )[0]
    result = check(one(letters(300), model="fast"), base, LOOSE)
    assert result.exit_code == 2
    assert any("has no record of autoattack" in problem for problem in result.problems)
    softer = make_stored(letters(300), model="soft", attack="autoattack", params={"steps": 1})
    soft = collect([make_stored(letters(300), model="soft"), softer])[0]
    result = check(soft, base, LOOSE)
    assert result.exit_code == 2
    assert result.problems == ("autoattack had other parameters for soft",)
    # An attack that only the candidate faced is left out, and said.
    result = check(base, one(letters(300), model="quick"), LOOSE)
    assert result.exit_code == 0
    assert any("autoattack is left out" in note for note in result.notes)


def test_other_conditions_are_refused() -> None:
    with pytest.raises(UsageError, match="seed 1"):
        check(one(letters(3)), one(letters(3), seed=1))


# --- a leaderboard's row -------------------------------------------------------------------


def test_figures_that_do_not_vary_say_no_n(tmp_path: Path) -> None:
    none = one("B" * 10, model="candidate")
    path = tmp_path / "leaderboard.csv"
    path.write_bytes(leaderboard_csv(build_leaderboard([make_stored("B" * 10, model="base")])))
    result = check(none, leaderboard_row(path, "base", none), LOOSE)
    item = part(result, "robust_acc")
    assert item.verdict is Verdict.CANNOT_TELL
    assert (item.n_to_pass, item.n_to_fail, item.detectable, result.n_needed) == (None,) * 4
    assert "n = 10 cannot tell; which n could is not known" in check_markdown(result)
    # Beside a record the score test knows: agreement on all of 268 samples has 1 point as its limit.
    paired = part(check(none, one("B" * 10, model="base"), LOOSE.with_margin(1.0)), "robust_acc")
    assert paired.n_to_pass == 268


def test_row_of_a_leaderboard_is_a_baseline(tmp_path: Path) -> None:
    strong, weak = letters(450), letters(100)
    frame = build_leaderboard(
        [make_stored(strong, model="strong"), make_stored(weak, model="weak")]
    )
    path = tmp_path / "leaderboard.csv"
    path.write_bytes(leaderboard_csv(frame))
    candidate = one(strong, model="candidate")
    result = check(candidate, leaderboard_row(path, "weak", candidate), LOOSE)
    assert result.exit_code == 0
    assert any("unpaired" in note for note in result.notes)
    worse = check(one(weak, model="c"), leaderboard_row(path, "strong", candidate), LOOSE)
    assert worse.exit_code == 1
    same = check(candidate, leaderboard_row(path, "strong", candidate), LOOSE)
    assert same.exit_code == 2
    item = part(same, "robust_acc")
    assert item.n_to_pass is not None
    assert item.n_to_pass > 500
    with pytest.raises(UsageError, match="0 rows"):
        leaderboard_row(path, "nobody", candidate)
    with pytest.raises(UsageError, match="0 rows"):
        leaderboard_row(path, "weak", one(strong, threat="Linf-8/255"))
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="not a leaderboard"):
        leaderboard_row(path, "weak", candidate)


WRONG_FIGURES = {
    "robust_acc=-inf": "robust_acc is -inf, not from 0 to 100",
    "robust_acc=-5": "robust_acc is -5, not from 0 to 100",
    "clean_acc=100.01": "clean_acc is 100.01, not from 0 to 100",
    "clean_acc=inf": "clean_acc is inf",
    "clean_acc=1e999": "clean_acc is inf",
    "robust_acc=many": "robust_acc is 'many', no number",
    "n=": "n is no whole number",
    "n=0": "n is 0, not from 1",
    "n=-500": "n is -500, not from 1",
    "n=99999999999": "n is 1e.11, not from 1",
    "n=0.5": "not a leaderboard",
}


@cache
def weak_board() -> tuple[ModelResult, str]:
    """A candidate, and a leaderboard of a weaker model."""
    board = build_leaderboard([make_stored(letters(100), model="weak")])
    return one(letters(450), model="candidate"), leaderboard_csv(board).decode()


@pytest.mark.parametrize("change", WRONG_FIGURES)
def test_figures_that_cannot_be_are_refused_by_file_row_and_column(
    tmp_path: Path, change: str
) -> None:
    candidate, text = weak_board()
    path = tmp_path / "leaderboard.csv"
    header, row = (line.split(",") for line in text.splitlines())
    column, _, value = change.partition("=")
    row[header.index(column)] = value
    path.write_text("\n".join(map(",".join, (header, row))))
    place = rf"{path}(: row of 'weak')?: {WRONG_FIGURES[change]}"
    with pytest.raises(UsageError, match=place):
        leaderboard_row(path, "weak", candidate)
    kept = [name for name in header if name != "clean_acc"]
    rows = [
        dict(zip(header, line, strict=True)) for line in (header, text.splitlines()[1].split(","))
    ]
    path.write_text("\n".join(",".join(r[name] for name in kept) for r in rows))
    with pytest.raises(UsageError, match="row of 'weak': there is no column clean_acc"):
        leaderboard_row(path, "weak", candidate)


# --- policy --------------------------------------------------------------------------------


def test_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        "alpha = 0.01\n[robust_acc]\nmargin = 2.5\n[clean_acc]\nmargin=1\nenabled=false\n"
    )
    policy = Policy.load(path)
    assert policy.alpha == 0.01
    assert policy.robust_acc.margin == 2.5
    assert list(policy.criteria) == [
        "robust_acc",
        "worst_class_robust_acc",
        "attention_deviation",
    ]
    assert policy.with_margin(3).robust_acc.margin == 3


@pytest.mark.parametrize(
    "text, words",
    [
        ("alpha = 2", "alpha"),
        ("[robust_acc]\nmargin = -1", "robust_acc.margin"),
        ("[robust_acc]\nmargin = 1e-300", "robust_acc.margin"),
        ("[robust_acc]\nmargin = inf", "robust_acc.margin"),
        ("[clean_acc]\nmargin = 101", "clean_acc: a margin of 101 points is above 100"),
        ("[worst_class_robust_acc]\nmargin = 1e300", "worst_class_robust_acc: a margin"),
        ("[attention_deviation]\nmargin = 0", "attention_deviation.margin"),
        ("alpha = 1e-300", "alpha"),
        ("[robust]\nmargin = 1", "robust"),
        ("[robust_acc]\nmargni = 1", "robust_acc"),
        ("alpha = ", "no TOML"),
        ("\ufeff\x00", "no TOML"),
    ],
)
def test_bad_policies_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)


def test_absent_policy_and_senseless_margin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Policy.load(tmp_path / "none.toml")
    for margin in (0.0, -1.0, math.nan, math.inf, 100.5, 1e-300):
        with pytest.raises(UsageError, match="margin"):
            Policy().with_margin(margin)


# --- outputs -------------------------------------------------------------------------------


@pytest.fixture
def verdicts() -> dict[int, CheckResult]:
    base = one(letters(375), model="base")
    noisy = one("B" * 40 + "S" * 360 + "B" * 100, model="noisy")
    return {
        0: check(base, base),
        1: check(one(letters(200), model="bad"), base),
        2: check(noisy, base, LOOSE),
    }


def test_json_holds_everything(verdicts: dict[int, CheckResult]) -> None:
    for code, result in verdicts.items():
        content = json.loads(check_json(result))
        assert content["exit_code"] == code == result.exit_code
        assert [c["quantity"] for c in content["criteria"]] == list(Policy().criteria)
        assert content["criteria"][3]["loss"] is None
        assert Policy.model_validate(content["policy"]) == result.policy


def test_junit_counts_what_ci_shows(verdicts: dict[int, CheckResult]) -> None:
    kinds = {0: None, 1: "failure", 2: "error"}
    for code, result in verdicts.items():
        suite = ElementTree.fromstring(check_junit(result))
        assert suite.get("tests") == str(len(suite.findall("testcase"))) == "4"
        for attribute, tag in (
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            assert suite.get(attribute) == str(len(suite.findall(f"testcase/{tag}")))
        robust = next(c for c in suite if c.get("name") == "robust_acc")
        assert [child.tag for child in robust] == [kinds[code] or "system-out"]


def test_the_summary_names_the_answer(verdicts: dict[int, CheckResult]) -> None:
    assert "❌ bad against base: worse" in check_markdown(verdicts[1])


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_pytest_fixture_gates(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    for model, robust in (("base", 375), ("bad", 200)):
        samples = make_samples(letters(robust))
        store.write(make_record(samples, model=model), samples)
    (tmp_path / "test_release.py").write_text(
        "def test_same(robench_check):\n"
        "    assert robench_check('base', against='base').exit_code == 0\n"
        "def test_bad(robench_check):\n"
        "    robench_check('bad', against='base', margin=1.0)\n"
    )

    def gated() -> tuple[int, str]:
        os.chdir(tmp_path)
        # Only robench's plugin: others take seconds to load.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = pytest.main(["-q", "-p", "robench.pytest_plugin", "-p", "no:cacheprovider", "."])
        return int(code), printed.getvalue()

    code, printed = in_a_fork(gated)
    assert code == 1
    assert "1 failed, 1 passed" in printed
    assert "bad against base: worse" in printed
