"""Tables for papers and pages: what is best, what is doubted, and names that stay text."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from export_material import material

from robench.errors import UnknownNameError, UsageError
from robench.exports import FORMATS
from robench.exports.latex import latex, tex
from robench.exports.tables import csv, make_grid, markdown_table, parquet
from robench.reporting.export import csv_bytes, samples_frame
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.statistics import wilson

HOSTILE = (
    r"\input{/etc/passwd}",
    "100%_done & #1 ${}$ ^~",
    "[2ex]",
    "* <b>\"q'`|",
    "a--b---c",
    "–—ε∞ café ß 中文 😀",
    "x\n\\end{document}",
    "\x1b[31mred\u202eabc",
    "=HYPERLINK(1)",
)


def bold(grid, title):
    column = grid.header.index(title)
    ((_, rows),) = grid.blocks
    return {row[0].text for row in rows if row[column].best}


def test_the_best_of_each_column_is_bold_ties_and_all(tmp_path):
    grid = make_grid(
        material(
            tmp_path,
            ("one", "a", "SSSB"),
            ("one", "b", "SSBB"),
            ("two", "a", "SSSB"),
            ("two", "b", "SBBB"),
            ("three", "a", "SBBC"),
            ("three", "b", "SBBC"),
        )
    )
    assert grid.header == ["Model", "Clean", "a", "b", "Robust"]
    assert bold(grid, "Clean") == {"one", "two"}
    assert bold(grid, "a") == {"one", "two"}
    assert bold(grid, "b") == bold(grid, "Robust") == {"one"}


def test_a_value_that_stands_alone_is_not_best(tmp_path):
    grid = make_grid(material(tmp_path, ("one", "a", "SSSB")))
    assert not any(cell.best for _, rows in grid.blocks for row in rows for cell in row)
    assert grid.remarks == []


def test_what_is_not_ranked_is_never_best_and_says_why(tmp_path):
    given = material(
        tmp_path,
        ("sound", "a", "SBBB"),
        ("sound", "b", "SBBB"),
        ("other", "a", "BBBB"),
        ("other", "b", "BBBB"),
        ("lucky", "a", "SSSS"),
        ("shaky", "a", "SSSE"),
        ("shaky", "b", "SSSE"),
    )
    grid = make_grid(given)
    assert bold(grid, "Robust") == {"sound"}
    assert grid.remarks == ["missing:b", "errored:1"]
    text = latex(given)
    assert r"lucky\textsuperscript{1} &" in text
    assert r"\footnotesize \textsuperscript{1} missing:b" in text
    assert "| shaky (2) |" in markdown_table(given)
    assert "(2) errored:1" in markdown_table(given)


def test_groups_are_blocks_of_their_own(tmp_path):
    given = material(
        tmp_path,
        ("one", "a", "SSSB"),
        ("two", "a", "SSBB"),
        ("one", "a", "SBBB", {"threat": "Linf-0.3"}),
        ("two", "a", "SSBB", {"threat": "Linf-0.3"}),
    )
    grid = make_grid(given)
    assert [name for name, _ in grid.blocks] == [
        "digits, Linf, eps 0.2, n = 4, seed 0",
        "digits, Linf, eps 0.3, n = 4, seed 0",
    ]
    best = [[row[0].text for row in rows if row[-1].best] for _, rows in grid.blocks]
    assert best == [["one"], ["two"]]
    assert latex(given).count(r"\multicolumn{4}{l}{digits, Linf, eps") == 2


def test_intervals_are_wilsons(tmp_path):
    given = material(tmp_path, ("one", "a", "SSSBBBBC"), intervals=True, digits=2)
    limits = wilson(3, 8).scaled(100)
    assert f"37.50 ({limits.low:.2f}--{limits.high:.2f})" in latex(given)
    assert f"37.50 ({limits.low:.2f} – {limits.high:.2f})" in markdown_table(given)


def test_columns_are_chosen_and_ordered(tmp_path):
    letters = {"values": {"attention_deviation": [0.5, 0.25, 0.75, np.nan]}}
    given = material(
        tmp_path,
        ("one", "pgd-20", "SSSB", letters),
        ("two", "pgd-20", "SSSB", {"values": {"attention_deviation": [0.5] * 4}}),
        columns=("robust_acc", "model", "attention_deviation", "verified"),
    )
    with pytest.raises(UnknownNameError, match="unknown column 'verified'"):
        make_grid(given)
    given = material(tmp_path / "b", ("one", "a", "SSSB"), columns=("model", "model"))
    with pytest.raises(UsageError, match="twice"):
        make_grid(given)


def test_metrics_have_two_digits_more_and_smaller_is_best_where_it_is(tmp_path):
    given = material(
        tmp_path,
        ("one", "pgd-20", "SSSB", {"values": {"attention_deviation": [0.25] * 4}}),
        ("two", "pgd-20", "SSSB", {"values": {"attention_deviation": [0.5] * 4}}),
        columns=("model", "attention_deviation"),
    )
    assert r"one & \textbf{0.250} \\" in latex(given)
    assert r"two & 0.500 \\" in latex(given)


def test_the_csv_is_the_leaderboards_and_parquet_holds_the_same(tmp_path):
    given = material(tmp_path, ("one", "a", "SSSB"), ("two", "a", "SSBE"), kept=True)
    assert csv(given).encode() == leaderboard_csv(build_leaderboard(given.store))
    frame = pd.read_parquet(io.BytesIO(parquet(given)))
    assert list(frame["robust_acc"]) == [75.0, 50.0]
    chosen = material(tmp_path / "b", ("one", "a", "SSSB"), columns=("model", "robust_acc"))
    assert csv(chosen) == "model,robust_acc\none,75.00\n"


def test_all_samples_on_request(tmp_path):
    given = material(tmp_path, ("one", "a", "SSSB"), ("two", "a", "SSBE"), samples=True)
    assert csv(given).encode() == csv_bytes(samples_frame(given.records))
    assert len(pd.read_parquet(io.BytesIO(parquet(given)))) == 8


def test_only_the_models_that_are_named(tmp_path):
    given = material(tmp_path, ("one", "a", "SSSB"), ("two", "a", "SSBB"), models=("two",))
    assert {stored.record.model.name for stored in given.records} == {"two"}
    with pytest.raises(UnknownNameError, match="'two'"):
        material(tmp_path / "b", ("one", "a", "S"), ("two", "a", "B"), models=("twoo",)).records  # noqa: B018


def test_nothing_to_export_says_so(tmp_path):
    with pytest.raises(UsageError, match="no records to export"):
        latex(material(tmp_path))


def test_targeted_results_have_their_own_table(tmp_path):
    record = (
        "one",
        "a",
        "SSSB",
        {"threat": "Linf-0.2-targeted-next", "values": {"target": [1, 0, 1, 0]}},
    )
    with pytest.raises(UsageError, match="--goal targeted"):
        latex(material(tmp_path, record))
    given = material(tmp_path / "b", record, goal="targeted")
    assert make_grid(given).header[:2] == ["Model", "attack"]
    with pytest.raises(UsageError, match="no field for"):
        FORMATS["model-index"].write(given, None)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stay_text(name):
    shown = tex(name)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[%&#_$~^](?![^$]*\$)", re.sub(r"\$\\\w+\$", "", shown))
    # Commands that the name brought are none: each backslash begins one of ours.
    ours = (
        r"\\(text\w+|char34|[&%$#_{}]|ss|ae|AE|o|O|aa|AA|varepsilon|infty|ell|leq|geq|[`'^~\"c]\{)"
    )
    assert len(re.findall(ours, shown)) == shown.count("\\")


def test_plain_names_are_as_they_are():
    assert tex("pgd-at 2.0") == "pgd-at 2.0"
    assert tex("café") == r"caf\'{e}"
    assert tex("a--b") == "a-{}-b"
    assert tex("中") == "U+4E2D"


def test_hostile_models_in_markdown_stay_cells(tmp_path):
    records = [(name, "a", "SSSB") for name in HOSTILE]
    text = markdown_table(material(tmp_path, *records))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(HOSTILE)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs")
def test_it_compiles_with_every_name(tmp_path):
    records = [(name, attack, "SSSB") for name in HOSTILE for attack in ("a", "b--c")]
    records += [("lacks one", "a", "SSSS"), ("one", "a", "SS", {"threat": "L2-0.5"})]
    table = latex(material(tmp_path / "r", *records, intervals=True))
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{table}\\end{{document}}\n"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=batchmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (tmp_path / "t.log").read_text()[-2000:]
    assert Path(tmp_path / "t.pdf").stat().st_size > 0
