"""Does every recipe train, load, evaluate and rank with the commands that the zoo records?

    python benchmarks/recipes.py                     # every model of the digits zoo
    python benchmarks/recipes.py digits/Linf-0.2/aerp

For each model: the command in its card, in a process and a folder of its own, timed; whether the
weights are the committed ones, bit for bit (on another machine they need not be); and then
``robench run`` on the card that the training wrote, with the ``quick`` suite. Writes
``benchmarks/results/recipes.md``, and fails where a command does or takes over ``--limit`` minutes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from peers import machine

from robench.models import find_card, list_cards

_OUT = Path(__file__).resolve().parent / "results" / "recipes.md"


@dataclass(frozen=True)
class Row:
    """One model, trained and evaluated again."""

    model: str
    epochs: int
    minutes: float
    same: bool
    rank: str
    clean: float
    pgd_20: float


def robench(words: list[str], **options: str) -> str:
    """Run a command of robench; its output.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "robench", *words]
    for name, value in options.items():
        command += [f"--{name}", value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def repeat(name: str, folder: Path) -> Row:
    """Train one model of the zoo again as its card says, and evaluate what comes out."""
    card = find_card(name).card
    if card.provenance.command is None:
        raise SystemExit(f"{card.id} records no command")
    program, *words = shlex.split(card.provenance.command)
    if program != "robench":
        raise SystemExit(f"{card.id} was trained by {program}")
    out = folder / card.name
    started = time.perf_counter()
    robench([*words, "--quiet"], out=str(out))
    minutes = (time.perf_counter() - started) / 60
    trained = find_card(out / "card.toml").card
    told = robench(
        ["run", str(out / "card.toml"), "--json"], suite="quick", results=str(folder / "results")
    )
    (row,) = (r for r in json.loads(told)["leaderboard"] if r["model"] == trained.name)
    return Row(
        model=card.id,
        epochs=card.provenance.epochs or 0,
        minutes=minutes,
        same=trained.weights.sha256 == card.weights.sha256,
        rank=str(row["rank"]),
        clean=float(row["clean_acc"]),
        pgd_20=float(row["pgd_20_acc"]),
    )


def table(rows: list[Row]) -> list[str]:
    """A Markdown table."""
    lines = [
        "| model | epochs | minutes | committed weights | rank | clean | PGD-20 |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        same = "the same" if row.same else "others"
        lines.append(
            f"| {row.model} | {row.epochs} | {row.minutes:.1f} | {same} | {row.rank} | "
            f"{row.clean:.1f} | {row.pgd_20:.1f} |"
        )
    return [*lines, ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="ids; default: all of digits")
    parser.add_argument("--limit", type=float, default=10.0, help="minutes for one training")
    arguments = parser.parse_args()
    names = arguments.models or [located.card.id for located in list_cards("digits")]
    rows = []
    with tempfile.TemporaryDirectory(prefix="robench-recipes-") as temporary:
        for name in names:
            rows.append(repeat(name, Path(temporary)))
            print(rows[-1], flush=True)
            head = ["# Every recipe's recorded command, once more", "", *machine("cpu")]
            _OUT.write_text("\n".join([*head, *table(rows)]))
    return int(any(row.minutes > arguments.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
