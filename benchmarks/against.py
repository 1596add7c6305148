"""This version beside another one, the same job in alternation: is it slower, are its numbers others?

    git worktree add ../before v0.1.0
    python benchmarks/against.py --before ../before
    python benchmarks/against.py --before ../before --model digits/Linf-0.2/trades --repeats 5

Every measurement is a process of its own (each checkout's ``peer_workers.py``), and the turns of the
two change places from pair to pair, so that a slow minute of the machine hits both. Writes medians, the
ratios pair by pair and the accuracies to ``benchmarks/results/against.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import machine

_HERE = Path(__file__).resolve().parent
_RESULT = _HERE / "results" / "against.md"


def measure(checkout: Path, task: str, options: dict[str, str]) -> dict[str, Any]:
    """One run of one checkout's robench: ``seconds``, ``robust_acc`` and more.

    ``cpu`` is the time of processors that the whole process took, start, loading and workers
    included: what others take from a shared machine is not in it.
    """
    command = [sys.executable, str(checkout / "benchmarks" / "peer_workers.py"), "robench", task]
    for name, value in options.items():
        command += [f"--{name}", value]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    before = os.times()
    done = subprocess.run(
        command, env=environment, cwd=checkout, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout} failed:\n{done.stderr[-3000:]}")
    after = os.times()
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    user = after.children_user - before.children_user
    return result | {"cpu": user + after.children_system - before.children_system}


def commit(checkout: Path) -> str:
    """The commit that a checkout stands at, short."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def middle(runs: list[dict[str, Any]]) -> str:
    return f"{statistics.median(run['seconds'] for run in runs):.2f}"


def gain(runs: dict[str, list[dict[str, Any]]], of: str) -> str:
    """Before over now, pair by pair: the median, the least and the greatest."""
    ratios = [b[of] / n[of] for b, n in zip(runs["before"], runs["now"], strict=True)]
    return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} … {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the other version")
    parser.add_argument("--model", nargs="+", default=["digits/Linf-0.2/pgd-at"])
    parser.add_argument("--task", default="aa-standard")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default="0.2")
    parser.add_argument("--n", default="500")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sides = {"before": arguments.before.resolve(), "now": _HERE.parent}
    lines = ["# robench beside an earlier version of itself", "", *machine("cpu")]
    lines += [
        f"{arguments.task}, {arguments.norm} {arguments.eps}, n = {arguments.n}, seeds 0, 1, …; "
        f"before: `{commit(sides['before'])}`, now: `{commit(sides['now'])}`.",
        "",
        "| model | before, s | now, s | before ÷ now, median (min … max) | the same in time of "
        "processors | robust accuracy %, before | now |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in arguments.model:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for repeat in range(arguments.repeats):
            options = {"model": model, "n": arguments.n, "norm": arguments.norm}
            options |= {"eps": arguments.eps, "seed": str(repeat)}
            for side in sorted(sides, reverse=bool(repeat % 2)):
                runs[side].append(measure(sides[side], arguments.task, options))
                last = runs[side][-1]
                print(
                    f"{model} {side:6s} {last['seconds']:7.2f} s, processors {last['cpu']:7.2f} s, "
                    f"{last['robust_acc']:.1f} %",
                    flush=True,
                )
        accuracies = {
            side: ", ".join(f"{run['robust_acc']:.1f}" for run in runs[side]) for side in sides
        }
        lines.append(
            f"| {model} | {middle(runs['before'])} | {middle(runs['now'])} | "
            f"{gain(runs, 'seconds')} | {gain(runs, 'cpu')} | {accuracies['before']} | "
            f"{accuracies['now']} |"
        )
        _RESULT.parent.mkdir(parents=True, exist_ok=True)
        _RESULT.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
