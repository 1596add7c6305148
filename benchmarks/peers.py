"""robench and its peers side by side: same model, same samples, same machine, in alternation.

    python benchmarks/peers.py                         # the digits tables
    python benchmarks/peers.py --only pgd-20 --repeats 5
    python benchmarks/peers.py --device cuda --models random:resnet18 --eps 8/255 --norm Linf

Every measurement is a process of its own (``peer_workers.py``). Peers whose pins clash with
robench's are installed without their dependencies into folders under ``build/peers`` and are seen
by their own measurements only. Writes medians, ratios and accuracies to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from robench.devices import resolve_device
from robench.evaluation.environment import describe_environment

_HERE = Path(__file__).resolve().parent
_REQUESTS = ["requests", "urllib3", "certifi", "charset-normalizer"]
_ISOLATED = {
    "torchattacks": ["torchattacks"],
    "Foolbox": ["foolbox", "eagerpy", "GitPython", "gitdb", "smmap", *_REQUESTS],
}


@dataclass(frozen=True)
class Table:
    """One comparison: the first peer is what the others are measured against."""

    task: str
    peers: tuple[str, ...]
    model: str
    norm: str
    eps: str
    n: int = 500
    repeats: int = 1
    dataset: str | None = None
    """Where it is not the one that the model's card names"""

    @property
    def title(self) -> str:
        data = "" if self.dataset is None else f" on {self.dataset}"
        return f"{self.task}, {self.model}{data}, {self.norm} {self.eps}, n = {self.n}"

    @property
    def runnable(self) -> bool:
        """Whether its data are here; a folder may not be."""
        return self.dataset is None or "/" not in self.dataset or Path(self.dataset).exists()


_PGD_PEERS = ("bare loop", "robench", "robench fp32", "ART", "torchattacks", "Foolbox")
_AA_PEERS = ("pyautoattack", "robench")
_PROTOCOLS = ("robench aa-standard", "robench aa-core")
_PHOTOGRAPHS = "data/cifar10-jpeg/test"
"""CIFAR-10's test images as JPEG files in a folder for each class; without it, its table is left out"""

PROTOCOL = (
    "Seeds 0, 1, …; one process a run; loading and judging are not timed, robench's checks and "
    "choice of precision are (PGD-20: the attack alone, as for its peers, the second of two "
    "calls). Peers get the network as users have it, with parameters that take gradients; "
    "pyautoattack runs in batches of 250."
)

TABLES = (
    Table("pgd-20", _PGD_PEERS, "digits/Linf-0.2/pgd-at", "Linf", "0.2", repeats=3),
    Table("aa-standard", _AA_PEERS, "digits/Linf-0.2/pgd-at", "Linf", "0.2", repeats=2),
    Table("aa-core", _PROTOCOLS, "digits/Linf-0.2/pgd-at", "Linf", "0.2", repeats=2),
    Table("aa-standard", _AA_PEERS, "digits/Linf-0.2/pgd-at", "L2", "0.5"),
    Table("aa-core", _PROTOCOLS, "digits/Linf-0.2/pgd-at", "L2", "0.5"),
    Table("aa-standard", _AA_PEERS, "digits/Linf-0.2/standard", "Linf", "0.2", repeats=3),
    # An undefended network of ordinary size: pyautoattack's own, on files that are no part of this.
    Table(
        "aa-standard",
        _AA_PEERS,
        "cifar10/Linf-8_255/pyautoattack-resnet18",
        "Linf",
        "8/255",
        n=100,
        dataset=_PHOTOGRAPHS,
    ),
    # Networks whose passes cost little beside what surrounds them.
    *(
        Table("aa-standard", _AA_PEERS, f"shallow:{shape}", norm, eps, n=200)
        for shape, norm, eps in (
            ("3x32x32", "Linf", "0.1"),
            ("3x32x32", "L2", "2.5"),
            ("1x28x28", "Linf", "0.1"),
            ("1x28x28", "L2", "1.2"),
        )
    ),
    # The reference as users run it: batches of 250.
    Table("aa-short", _AA_PEERS, "random:resnet18", "Linf", "1/255", n=250),
    Table("ce-square-short", _AA_PEERS, "random:resnet18", "Linf", "1/255", n=250),
)


def install_peers(folder: Path) -> None:
    """Put peers that clash with robench's environment where only they are seen."""
    for peer, packages in _ISOLATED.items():
        place = folder / peer
        if not place.is_dir():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*command, "--target", str(place), *packages], check=True)


def measure(
    table: Table,
    peer: str,
    seed: int,
    device: str,
    folder: Path,
    logits: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """One run of one peer, on logits that are multiplied and shifted if so asked."""
    environment = dict(os.environ)
    if peer in _ISOLATED:
        environment["PYTHONPATH"] = str(folder / peer)
    command = [sys.executable, str(_HERE / "peer_workers.py"), peer, table.task]
    options = {
        "model": table.model,
        "n": table.n,
        "norm": table.norm,
        "eps": table.eps,
        "seed": seed,
        "device": device,
    }
    if table.dataset is not None:
        options["dataset"] = table.dataset
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    if logits is not None:
        command += ["--logits", *(repr(number) for number in logits)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{peer} failed on {table.title}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    seconds = f"{result['seconds']:8.2f} s, processors {result['processor_seconds']:8.2f} s"
    print(f"  {peer:14s} {seconds}  {result['robust_acc']:.1f} %", flush=True)
    return result


def run_table(table: Table, device: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All peers in alternation, so that a slow minute of the machine hits them all."""
    print(table.title, flush=True)
    runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in table.peers}
    for repeat in range(table.repeats):
        for peer in table.peers:
            runs[peer].append(measure(table, peer, repeat, device, folder))
    return runs


def render(table: Table, runs: dict[str, list[dict[str, Any]]], timed: bool) -> list[str]:
    """A Markdown table of medians, ratios, accuracies and the roofline's share.

    Without times, for runs on a machine that was busy with other things: accuracies alone.
    """
    first_runs = runs[table.peers[0]]
    base = statistics.median(run["seconds"] for run in first_runs)
    base_processors = statistics.median(run["processor_seconds"] for run in first_runs)
    lines = [f"### {table.title}", ""]
    if not timed:
        lines += ["| | robust accuracy % | difference |", "|---|---|---|"]
        first = statistics.median(run["robust_acc"] for run in runs[table.peers[0]])
        for peer in table.peers:
            accuracies = [run["robust_acc"] for run in runs[peer]]
            middle = statistics.median(accuracies)
            spread = (
                f" ({min(accuracies):.1f} … {max(accuracies):.1f})" if len(accuracies) > 1 else ""
            )
            lines.append(f"| {peer} | {middle:.1f}{spread} | {middle - first:+.1f} |")
        return [*lines, ""]
    lines += [
        f"| | seconds (median of {table.repeats}) | {table.peers[0]} ÷ this | the same in time of "
        "processors | robust accuracy % (min … max) | share of bare passes | search |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in table.peers:
        seconds = statistics.median(run["seconds"] for run in runs[peer])
        accuracies = [run["robust_acc"] for run in runs[peer]]
        shares = [run["share"] for run in runs[peer] if "share" in run]
        share = f"{statistics.median(shares):.2f}" if shares else ""
        search = runs[peer][0].get("precision", "")
        processors = statistics.median(run["processor_seconds"] for run in runs[peer])
        lines.append(
            f"| {peer} | {seconds:.2f} | {base / seconds:.2f}× | {base_processors / processors:.2f}× | "
            f"{statistics.median(accuracies):.1f} ({min(accuracies):.1f} … {max(accuracies):.1f}) | "
            f"{share} | {search} |"
        )
    for peer in table.peers:
        stages = runs[peer][0].get("stages")
        if stages and len(stages) > 1:
            parts = [_stage(stage) for stage in stages]
            first = runs[peer][0]
            passes = "no survivors"
            if not math.isnan(first["forwards_per_survivor"]):
                passes = (
                    f"{first['forwards_per_survivor']:.0f} forward and "
                    f"{first['backwards_per_survivor']:.0f} backward passes per survivor"
                )
            lines += ["", f"{peer}, first run: {'; '.join(parts)}; {passes}."]
    return [*lines, ""]


def _stage(stage: dict[str, Any]) -> str:
    """Of an attack: who were there, who was left, and how long it took."""
    attempted, left = stage["attempted"], stage["attempted"] - stage["broken"]
    return f"{stage['name']}: {attempted} → {left} in {stage['seconds']:.1f} s"


def machine(device: str, note: str = "") -> list[str]:
    """What the figures were measured on."""
    place = resolve_device(device)
    environment = describe_environment((place,), "", 0)
    packages = ("torch", "pyautoattack", "adversarial-robustness-toolbox")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    threads = f", {torch.get_num_threads()} threads" if place.type == "cpu" else ""
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, {environment.device_name}{threads}, "
        f"Python {platform.python_version()}, {versions}.{note and ' '}{note}",
        "",
        f"Command: `{' '.join(['python benchmarks/' + Path(sys.argv[0]).name, *sys.argv[1:]])}`",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="tables whose title contains this")
    parser.add_argument("--repeats", type=int, help="instead of each table's own number")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--accuracy-only", action="store_true", help="leave times out")
    parser.add_argument("--models", nargs="*", help="aa-standard on these instead of the tables")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default="0.2")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "peers.md")
    arguments = parser.parse_args()
    tables = list(TABLES)
    if arguments.models:
        tables = [
            Table("aa-standard", _AA_PEERS, model, arguments.norm, arguments.eps, arguments.n)
            for model in arguments.models
        ]
    wanted = [t for t in tables if not arguments.only or arguments.only in t.title]
    tables = [table for table in wanted if table.runnable]
    for table in wanted:
        if not table.runnable:
            print(f"left out, no folder {table.dataset}: {table.title}", flush=True)
    folder = _HERE.parent / "build" / "peers"
    install_peers(folder)
    lines = ["# robench beside its peers", "", *machine(arguments.device, PROTOCOL)]
    for table in tables:
        if arguments.repeats:
            table = Table(**{**vars(table), "repeats": arguments.repeats})
        lines += render(
            table, run_table(table, arguments.device, folder), not arguments.accuracy_only
        )
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
