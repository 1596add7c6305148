"""How long people wait before robench does anything, and how large it is.

    python benchmarks/start_up.py

Each command runs in a process of its own, in turns, after once unmeasured: seconds by the clock, and of
the processors. ``robench leaderboard`` looks at a copy of the committed results, in which nothing has changed
since its unmeasured run; ``made anew``, the folder has forgotten what was published, and all is read and the
tables are written.
The wheel is built from this tree. Writes ``benchmarks/results/start_up.md``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import machine

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "python -c pass": (["-c", "pass"], None),
    "import robench": (["-c", "import robench"], 0.3),
    "robench --help": (["-m", "robench", "--help"], None),
    "robench leaderboard": (["-m", "robench", "leaderboard", "--results", "results"], 1.5),
    "robench leaderboard --no-plots, made anew": (
        ["-m", "robench", "leaderboard", "--results", "anew", "--no-plots"],
        None,
    ),
}
"""Name → arguments of the interpreter, and the seconds that it may take"""
WHEEL_MB = 5.0


def run(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds by the clock and of processors that a fresh interpreter takes."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, os.times()
    ended = after.children_user + after.children_system
    return seconds, ended - before.children_user - before.children_system


def wheel_size(folder: Path) -> float:
    """Megabytes."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*map(str, build), str(ROOT)], check=True)
    (wheel,) = folder.glob("robench-*.whl")
    return wheel.stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("results", "anew"):
            shutil.copytree(ROOT / "results", folder / name)
        (folder / "anew/published.json").unlink(missing_ok=True)
        for repeat in range(repeats + 1):
            for name, (arguments, _) in COMMANDS.items():
                figures = run(arguments, folder)
                if repeat:
                    taken[name].append(figures)
        size = wheel_size(folder)
    load = os.getloadavg()[1]
    lines = [
        "# What one waits for",
        "",
        *machine(
            "cpu", f"{repeats} runs of each in turns, medians; load {load:.1f} over five minutes."
        ),
        "| | seconds | of processors | at most |",
        "|---|---:|---:|---:|",
    ]
    for name, (_, limit) in COMMANDS.items():
        clock, cpu = (statistics.median(column) for column in zip(*taken[name], strict=True))
        allowed = "" if limit is None else f"{limit:g}"
        lines.append(f"| `{name}` | {clock:.2f} | {cpu:.2f} | {allowed} |")
    lines += ["", f"The wheel has {size:.2f} MB, of at most {WHEEL_MB:g}.", ""]
    print("\n".join(lines))
    (ROOT / "benchmarks/results/start_up.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
