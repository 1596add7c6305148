"""How near do bounds and attacks come on networks that are trained to be verified?

    python benchmarks/verified.py

Trains two small networks with the recipe ``ibp`` on digits, attacks them with AutoAttack's
protocol (``aa-standard``) and bounds them by every method, each by robench's own commands. Writes
``benchmarks/results/verified.md``; fails where a bracket is not below ``--width`` points. About
ten minutes on a core; with ``--work FOLDER`` it goes on there where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import tempfile
from pathlib import Path

from peers import machine
from recipes import robench

from robench.text import file_name

_OUT = Path(__file__).resolve().parent / "results" / "verified.md"
_THREAT = "Linf-0.1"
_METHODS = ("ibp", "crown-ibp", "crown")
_NETWORKS = {
    "width 16, κ 0.7": ["--arch-arg", "width=16", "--set", "verified_weight=0.7"],
    "width 8, κ 0.5": ["--arch-arg", "width=8", "--set", "verified_weight=0.5"],
}
_TRAIN = shlex.split(
    f"train ibp --quiet --arch small_cnn --threat-model {_THREAT} --epochs 100 --set optimiser=adam "
    "--set lr=0.003 --set weight_decay=0 --set eps_warmup=0.5 --set validation_steps=2 "
    "--set validate_every=20"
)


def _cpu_seconds() -> float:
    """Of the commands so far."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def row(name: str, options: list[str], n: int, folder: Path) -> tuple[list[str], float]:
    """Train, attack and bound one network: its line of the table, and the bracket in points."""
    model, results = folder / "model", folder / "results"
    if not (model / "card.toml").exists():
        robench([*_TRAIN, *options, "--out", str(model)])
    robench(["run", str(model), "--suite", "aa-standard", "--n", str(n), "--results", str(results)])
    cells, best = [], 0.0
    for method in _METHODS:
        start = _cpu_seconds()
        words = ["verify-bounds", str(model), "--method", method, "--n", str(n), "--json"]
        (line,) = json.loads(robench([*words, "--results", str(results)]))
        cells += [f"{line['verified_acc']:.1f}", f"{_cpu_seconds() - start:.0f}"]
        best = max(best, line["verified_acc"])
    attacked = line["best_known_acc"]
    return [name, f"{line['clean_acc']:.1f}", *cells, f"{attacked:.1f}"], attacked - best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--width", type=float, default=3.0, help="of the bracket, in points")
    parser.add_argument("--out", type=Path, default=_OUT)
    parser.add_argument("--work", type=Path, help="folder of models and records, which are kept")
    options = parser.parse_args()
    rows, widest = [], 0.0
    for name, arguments in _NETWORKS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary if options.work is None else options.work) / file_name(name)
            cells, bracket = row(name, arguments, options.n, folder)
        rows.append(f"| {' | '.join(cells)} | {bracket:.1f} |")
        widest = max(widest, bracket)
    methods = " | ".join(f"{method} | s" for method in _METHODS)
    lines = [
        "# Bounds and attacks on networks that are trained to be verified",
        "",
        f"`small_cnn` trained with `ibp` on digits under {_THREAT}, n = {options.n}. Percent of the "
        "samples: correct without an attack; verified by each method, with the command's CPU seconds; "
        "left by `aa-standard`. The bracket is the distance between the last two, in points.",
        "",
        f"| network | clean | {methods} | attacked | bracket |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        *machine("cpu"),
    ]
    options.out.write_text("\n".join(lines))
    print("\n".join(lines))
    if widest >= options.width:
        raise SystemExit(f"a bracket is {widest:.1f} points wide")


if __name__ == "__main__":
    main()
