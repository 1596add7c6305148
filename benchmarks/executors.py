"""One leaderboard made in many ways: is every figure of it the same?

One process, two forks, ``cpu:2``, shards merged in a random order, Ray with several parts at once, and Ray
on a cluster of three machines (simulated on this one) of which one is killed while it works. What each way
leaves in its results folder is compared with what the first one left:

- the leaderboard's CSV, byte for byte, without ``forwards``, ``backwards`` and ``seconds``;
- each record's table, number by number: verdicts, predictions, margins, sizes, metrics. Passes may differ by a
  few, as ``docs/records.md`` says, and are not compared.

Run by hand; what is done stays in ``--work``, so a run that was ended goes on::

    python benchmarks/executors.py --n 200 --write

Every way is a process of its own: none may fork once Ray has run in it. Fails where anything differs.

With ``--speed`` it is asked instead how long ``aa-standard`` takes on the first of the models: one process
and two forks, and Ray with eight parts, one and two at once, on a thread each. What is timed comes after the
start-up: a first, small evaluation, for which Ray starts its processes and these load what they need. By
hand, on an idle machine::

    python benchmarks/executors.py --speed --n 500 --write
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import robench
from robench.evaluation.environment import describe_environment
from robench.evaluation.merging import merge_all
from robench.preparation import prepare
from robench.reporting.leaderboard import leaderboard_csv
from robench.request import Request
from robench.results import Store

RESULT = Path(__file__).parent / "results" / "executors.md"
LEFT_OUT = ["forwards", "backwards", "seconds"]
WAYS: dict[str, dict[str, Any]] = {
    "one process": {"workers": 1},
    "two forks": {"workers": 2},
    "cpu:2": {"device": "cpu:2"},
    "1 shard": {"shards": 1},
    "3 shards": {"shards": 3},
    "8 shards": {"shards": 8},
    "Ray, 1 at once": {"executor": "ray", "workers": 1},
    "Ray, 2 at once": {"executor": "ray", "workers": 2},
    "Ray, 4 at once": {"executor": "ray", "workers": 4, "cpus_per_task": 0.5},
}
LOSING = "Ray, one of three machines killed"
SPEED_RESULT = RESULT.with_name("executors_speed.md")
TIMED: dict[str, tuple[dict[str, Any], str]] = {
    "one process": ({"workers": 1, "device": "cpu"}, "one process"),
    "two forks": ({"workers": 2, "device": "cpu"}, "one process"),
    "Ray, 8 shards, 1 at once": ({"executor": "ray", "workers": 1, "shards": 8}, "one process"),
    "Ray, 8 shards, 2 at once": ({"executor": "ray", "workers": 2, "shards": 8}, "two forks"),
}
"""How it is asked for, and what it is held against"""


def main() -> int:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["pgd-at", "vit-pgd-at", "standard"])
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=[*WAYS, LOSING], default=[*WAYS, LOSING])
    parser.add_argument("--losses", type=int, default=10, help="runs in which a machine is killed")
    parser.add_argument("--losing-suite", default="quick", help="of these runs")
    parser.add_argument("--speed", action="store_true", help="how long it takes, instead")
    parser.add_argument("--rounds", type=int, default=3, help="of timing, one way after the other")
    parser.add_argument("--work", type=Path, default=Path("build/executors"))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder = options.worker
        if options.speed:
            print(json.dumps(timed(name, Path(folder), options)))
        else:
            run(name, Path(folder), options)
        return 0
    if options.speed:
        text = speed_table(time_all(options))
        print(text)
        if options.write:
            SPEED_RESULT.write_text(speed_page(text, options))
        return 0
    rows = compare_all(options)
    print(table(rows))
    if options.write:
        write(rows, options)
    return 0 if all(row.same for row in rows) else 1


# --- one way -------------------------------------------------------------------------------


def run(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Make the leaderboard's records in ``folder``."""
    asked = {"dataset": "digits", "n": options.n, "results": folder}
    if name.startswith(LOSING):
        lose_a_machine(options, asked, seed=int(name.rpartition(" ")[2]))
        return
    way = WAYS[name]
    if "shards" not in way or "executor" in way:
        evaluate(options.models, options.suite, **{"device": "cpu"} | asked | way)
        return
    count, draw = way["shards"], random.Random(way["shards"])
    folders = [folder / f"machine-{index}" for index in range(1, count + 1)]
    for index, own in enumerate(folders, 1):
        part = {"shard": f"{index}/{count}", "results": own, "device": "cpu"}
        evaluate(options.models, options.suite, **asked | part)
    draw.shuffle(folders)
    _, problems = merge_all([Store(own) for own in folders], Store(folder))
    if problems:
        raise SystemExit(str(problems[0]))


def evaluate(models: list[str], suite: str, **asked: Any) -> None:
    """All models, as ``robench run`` does it."""
    prepare(Request(models=models, suite=suite, **asked)).run()


def lose_a_machine(options: argparse.Namespace, asked: dict[str, Any], seed: int) -> None:
    """Of three that Ray takes for machines, one is killed at a moment of the seed's."""
    from ray.cluster_utils import Cluster  # an extra

    machines: Any = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    draw = random.Random(seed)
    lost = draw.choice([machines.add_node(num_cpus=1) for _ in range(2)])
    timer = threading.Timer(draw.uniform(5, 30), machines.remove_node, (lost, False))
    timer.start()
    started = time.perf_counter()
    try:
        ray = {"executor": "ray", "address": machines.address, "shards": 8}
        evaluate(options.models, options.losing_suite, **asked | ray)
    finally:
        print(
            json.dumps({"killed after": timer.interval, "seconds": time.perf_counter() - started})
        )
        timer.cancel()
        machines.shutdown()


# --- comparing -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one way came to, beside the first."""

    way: str
    records: int
    leaderboard: bool
    """Whether its CSV is the same"""
    differing: dict[str, tuple[int, float]]
    """Column of the records' tables → rows that differ, and by how much at most"""
    remark: str = ""

    @property
    def same(self) -> bool:
        return self.leaderboard and not self.differing


def compare_all(options: argparse.Namespace) -> list[Row]:
    """Each way beside one process."""
    rows = []
    for name in options.only:
        if name != LOSING:
            rows.append(compare(name, options, options.suite))
            continue
        for seed in range(options.losses):
            rows.append(compare(f"{LOSING}, {seed}", options, options.losing_suite))
    return rows


def compare(name: str, options: argparse.Namespace, suite: str) -> Row:
    """One way beside one process, on the same suite."""
    made, remark = records_of(name, options, suite)
    first, _ = records_of("one process", options, suite)
    if set(made) != set(first):
        raise SystemExit(f"{name}: other records than those of one process")
    row = Row(name, len(made), csv_of(made) == csv_of(first), differences(made, first), remark)
    print(row, flush=True)
    return row


def records_of(name: str, options: argparse.Namespace, suite: str) -> tuple[dict[str, Any], str]:
    """Records by key, made if they are not there, and what the process said."""
    folder = options.work / f"{suite}-{options.n}-{'+'.join(options.models)}" / name
    said = folder / "said.txt"
    if not said.exists():
        command = [sys.executable, __file__, "--worker", name, str(folder), "--n", str(options.n)]
        command += ["--suite", suite, "--losing-suite", suite, "--models", *options.models]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        said.write_text(done.stdout)
    kept = {stored.record.key: stored for stored in Store(folder).records()}
    return kept, (said.read_text().splitlines() or [""])[-1]


def csv_of(records: dict[str, Any]) -> bytes:
    """The leaderboard without what may differ."""
    frame = robench.leaderboard(list(records.values()))
    return leaderboard_csv(frame.drop(columns=LEFT_OUT))


def differences(made: dict[str, Any], first: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """See :attr:`Row.differing`."""
    found: dict[str, tuple[int, float]] = {}
    for key, stored in made.items():
        mine, other = (s.table.drop(columns=LEFT_OUT[:2]) for s in (stored, first[key]))
        assert list(mine.columns) == list(other.columns)
        for column in mine.columns:
            count, most = column_difference(mine[column], other[column])
            if count:
                before = found.get(column, (0, 0.0))
                found[column] = before[0] + count, max(before[1], most)
    return found


def column_difference(one: pd.Series[Any], two: pd.Series[Any]) -> tuple[int, float]:
    """How many entries differ, and by how much at most; infinite where they are no numbers."""
    same = (one == two) | (one.isna() & two.isna())
    apart = int((~same).sum())
    if not apart:
        return 0, 0.0
    if not pd.api.types.is_numeric_dtype(one):
        return apart, np.inf
    return apart, float((one - two)[~same].abs().max())


# --- how long it takes ---------------------------------------------------------------------


def timed(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the start-up, and of what comes after it."""
    asked, started = TIMED[name][0] | {"dataset": "digits"}, time.perf_counter()
    with ExitStack() as stack:
        if "executor" in asked:  # what is asked for later finds the cluster that is there
            from robench.execution.ray_cluster import RayCluster, Wanted

            stack.enter_context(RayCluster.connect(Wanted(at_once=asked["workers"])))
        evaluate(options.models[:1], "quick", n=16, results=folder / "first", **asked)
        ready = time.perf_counter()
        evaluate(options.models[:1], "aa-standard", n=options.n, results=folder / "then", **asked)
        ended = time.perf_counter()
    return {"start-up": ready - started, "seconds": ended - ready}


def time_all(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Each way's rounds; the ways take turns, as machines have faster and slower hours."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TIMED}
    alone = dict(os.environ, OMP_NUM_THREADS="1")
    about = ["--speed", "--n", str(options.n), "--models", options.models[0]]
    for _ in range(options.rounds):
        for name, rounds in found.items():
            with tempfile.TemporaryDirectory(prefix="robench-speed-") as folder:
                command = [sys.executable, __file__, "--worker", name, folder, *about]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=alone
                )
            rounds.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, rounds[-1], file=sys.stderr, flush=True)
    return found


def speed_table(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians of the rounds, as Markdown."""
    seconds = {name: _median(rounds, "seconds") for name, rounds in found.items()}
    lines = [
        "| way | start-up, s | then, s | least and most | beside | times as fast | overhead |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for name, rounds in found.items():
        other = TIMED[name][1]
        ratio = seconds[other] / seconds[name]
        each = [r["seconds"] for r in rounds]
        lines.append(
            f"| {name} | {_median(rounds, 'start-up'):.1f} | {seconds[name]:.1f} | {min(each):.1f} to "
            f"{max(each):.1f} | {other} | {ratio:.2f} | {1 / ratio - 1:+.0%} |"
        )
    return "\n".join(lines)


def _median(rounds: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in rounds)


def speed_page(text: str, options: argparse.Namespace) -> str:
    """The file of these results."""
    here = describe_environment([torch.device("cpu")], "", 0)
    return f"""# How long it takes in one process, in two, and on Ray

`python benchmarks/executors.py {_given(options)}`, {date.today()}

`aa-standard` on {options.models[0]}, {options.n} digits, a thread for each process; medians of {options.rounds} rounds.
What is timed is all of `robench run` but loading the libraries and a first, small evaluation, which are the start-up:
preparing the model, which each process of Ray's does for itself, sending, joining and writing are in it.

{text}

{here.device_name}; Python {here.versions["python"]}, torch {here.versions["torch"]}.
"""


# --- what is written -----------------------------------------------------------------------


def _given(options: argparse.Namespace) -> str:
    words = [word for word in sys.argv[1:] if word not in ("--work", str(options.work), "--write")]
    return shlex.join(words)


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| way | records | leaderboard | tables | |",
        "|---|---:|---|---|---|",
    ]
    for row in rows:
        apart = "; ".join(
            f"`{name}` {count} rows, at most {most:.2g}"
            for name, (count, most) in row.differing.items()
        )
        told = "same bytes" if row.leaderboard else "**differs**"
        lines.append(
            f"| {row.way} | {row.records} | {told} | {apart or 'same bits'} | {row.remark} |"
        )
    return "\n".join(lines)


def write(rows: list[Row], options: argparse.Namespace) -> None:
    """The results file."""
    here = describe_environment([torch.device("cpu")], "", 0)
    losing = f" Where a machine is killed, suite `{options.losing_suite}` in eight parts, on three of them."
    losing = losing if LOSING in options.only else ""
    text = f"""# One leaderboard, made in many ways

`python benchmarks/executors.py {_given(options)}`, {date.today()}

{", ".join(options.models)} on digits, suite `{options.suite}`, n = {options.n}, beside what one process makes of it:
the leaderboard's CSV without {", ".join(LEFT_OUT)}, and every number of the records' tables but passes.{losing}

{table(rows)}

{here.device_name}, {here.threads} thread(s); Python {here.versions["python"]}, torch {here.versions["torch"]}.
"""
    RESULT.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
