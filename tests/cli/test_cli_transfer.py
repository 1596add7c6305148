"""``robench transfer`` on models of the zoo."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from invoke_cli import invoke

pytestmark = pytest.mark.usefixtures("unexamined")

N = 6
GIVEN = ("pgd-at", "standard", "--n", N, "--attack", "fgsm", "--device", "cpu", "--workers", 1)


@pytest.fixture(scope="module")
def transferred(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("transfer")
    done = invoke(
        "transfer", *GIVEN, "--results", folder, "--no-plots", "--json", "--csv", folder / "m.csv"
    )
    assert done.code == 0, done.err
    return folder, done.json


def test_it_gives_the_pairs_the_matrix_and_the_files(transferred: tuple[Path, Any]) -> None:
    folder, said = transferred
    assert [(row["source"], row["target"], row["relation"]) for row in said["transfers"]] == [
        ("pgd-at", "pgd-at", "own"),
        ("pgd-at", "standard", "other"),
        ("standard", "pgd-at", "other"),
        ("standard", "standard", "own"),
    ]
    assert {"transfers.csv", "transfer_matrix.csv"} <= {Path(file).name for file in said["files"]}
    assert (folder / "m.csv").read_bytes() == (folder / "transfer_matrix.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO((folder / "m.csv").read_text())))
    assert [row["source"] for row in rows] == ["pgd-at", "standard", "lowest of others"]
    for row, told in zip(rows, said["matrix"], strict=True):
        assert float(row["pgd-at_acc"]) == told["pgd-at_acc"]
    assert rows[2]["pgd-at_acc"] == rows[1]["pgd-at_acc"]


def test_it_reads_what_is_there_and_draws_it(transferred: tuple[Path, Any]) -> None:
    folder, said = transferred
    done = invoke("transfer", *GIVEN, "--results", folder, "--no-plots")
    assert done.code == 0, done.err
    assert done.err.count("stored before") == 4
    lines = [line.split() for line in done.out.splitlines()]
    assert ["pgd-at", "standard"] in lines
    (own,) = (row["robust_acc"] for row in said["transfers"][:1])
    assert any(line[:2] == ["pgd-at", f"{own:.1f}"] for line in lines)
    done = invoke("plot", "transfer", "--results", folder, "--out", folder / "map.svg")
    assert done.code == 0, done.err
    done = invoke(
        "plot", "transfer", "--results", folder, "--attack", "pgd", "--out", folder / "no.svg"
    )
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pgd-at"], "alone has no other model"),
        (["pgd-at", "trads"], "'trades'"),
        (
            ["pgd-at", "trades", "--ensemble", "pgd-at,mart"],
            "unknown model among those that are named",
        ),
        (["pgd-at", "trades", "--ensemble", "pgd-at"], "an ensemble of one model"),
        (["pgd-at", "trades", "--ensemble", "pgd-at,trades", "--mean", "vote"], "'vote'"),
        (["pgd-at", "trades", "--eps", "0.1,0.2"], "these are several: Linf-0.1, Linf-0.2"),
        (["pgd-at", "trades", "--attack", "fgsm", "--suite", "quick"], "Choose one"),
        (["pgd-at", "trades", "--suite", "corruptions"], "has no adversary"),
        (["pgd-at", "trades", "--attack", "fgms"], "'fgsm'"),
        (["pgd-at", "resnet10-standard"], "different data sets"),
    ],
)
def test_what_is_no_transfer_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = invoke("transfer", *arguments, "--n", 2, "--results", tmp_path / "out")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert words in done.err
    assert not (tmp_path / "out").exists()
