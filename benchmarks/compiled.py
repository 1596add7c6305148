"""Compiled forms of the search's model beside the eager ones: what they cost and what they gain.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py

Each network and form is measured in a process of its own with an empty compile cache. Rates are
those of the best call; the ratio is the median over pairs of calls, one eager and one compiled,
in alternation, with its quartiles. Both are measured by the thread's own time on a CPU, since a
machine shared with others takes turns. Writes ``benchmarks/results/compiled.md``; what the search
expects of a compiler (``robench/evaluation/compiled.py``) is set from it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.attacks.losses import LOSSES, Loss
from robench.devices import resolve_device
from robench.evaluation.compiled import Kind, compile_whole
from robench.evaluation.environment import describe_environment
from robench.evaluation.search_models import EagerModel
from robench.evaluation.timing import synchronise
from robench.evaluation.variants import Variant, build_variant
from robench.models import load_model, wrap_module
from robench.models.architectures.build import build_architecture
from robench.models.wrapper import RobenchModel
from robench.records import ArchitectureSpec

CASES = (
    ("digits/Linf-0.2/pgd-at", 512, "fp32 folded"),
    ("digits/Linf-0.2/pgd-at", 512, "bf16 folded"),
    ("random:resnet18", 32, "fp32 folded"),
    ("random:resnet18", 32, "bf16 folded"),
    ("digits/Linf-0.2/vit-pgd-at", 512, "bf16 folded"),
    ("digits/Linf-0.2/pgd-at", 1024, "bf16 folded"),
)
FORMS = {
    "fp32 folded": Variant(folded=True),
    "bf16 folded": Variant(torch.bfloat16, folded=True),
}
KINDS: tuple[Kind, ...] = ("logits", "gradient")


def network(name: str) -> tuple[RobenchModel, tuple[int, int, int]]:
    """The model and the shape of its inputs."""
    if not name.startswith("random:"):
        return load_model(name), (1, 8, 8)
    torch.manual_seed(0)
    module = build_architecture(ArchitectureSpec(name=name.partition(":")[2]), 10, 3)
    return wrap_module(module, num_classes=10), (3, 32, 32)


def clock(device: torch.device) -> Callable[[], float]:
    return time.perf_counter if device.type == "cuda" else time.thread_time


def spent() -> float:
    """Processor seconds of this process and of the compilers that it started."""
    return sum(os.times()[:4])


def measure(
    name: str, size: int, form: str, kind: Kind, device: torch.device, seconds: float
) -> dict[str, Any]:
    model, shape = network(name)
    eager = build_variant(model.to(device), FORMS[form])
    assert isinstance(eager, EagerModel)
    points = torch.rand((size, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    loss = Loss(LOSSES["ce"], labels, labels)
    started, processor = time.perf_counter(), spent()
    compiled = compile_whole(eager, kind, points, loss)
    cost = time.perf_counter() - started, spent() - processor
    now = clock(device)

    def call(candidate: Any, inputs: Tensor) -> float:
        there = loss if len(inputs) == size else loss.at(torch.arange(len(inputs), device=device))
        synchronise()
        since = now()
        if kind == "logits":
            candidate.logits(inputs)
        else:
            candidate.gradient(inputs, there)
        synchronise()
        return now() - since

    nearly = points[: size * 15 // 16]
    for candidate in (eager, compiled):
        call(candidate, points)
    full: list[tuple[float, float]] = []
    padded: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(full) < 5 or time.perf_counter() - started < seconds:
        full.append((call(eager, points), call(compiled, points)))
        padded.append((call(eager, nearly), call(compiled, nearly)))
    ratios = [one / other for one, other in full]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "wall": cost[0],
        "processor": cost[1],
        "eager": size / min(one for one, _ in full),
        "compiled": size / min(other for _, other in full),
        "ratio": middle,
        "quartiles": (low, high),
        "padded": statistics.median(one / other for one, other in padded),
        "pairs": len(full),
    }


def in_a_process(arguments: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
    result: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, each row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compiled.md"))
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "SIZE", "FORM"))
    options = parser.parse_args()
    device = resolve_device(options.device)
    if options.one:
        name, size, form = options.one
        rows = [measure(name, int(size), form, k, device, options.seconds) for k in KINDS]
        print(json.dumps(rows))
        return
    here = describe_environment(device, "", 0)
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    unit = "second" if device.type == "cuda" else "processor second"
    lines = [
        "# Compiled forms beside eager ones",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {here.device_name}{threads}, torch {torch.__version__}; "
        f"the machine was shared with other work (load {os.getloadavg()[0]:.0f} on "
        f"{os.cpu_count()} processors when this began).",
        "",
        f"Command: `OMP_NUM_THREADS=1 python benchmarks/compiled.py --device {options.device} "
        f"--seconds {options.seconds:g}`",
        "",
        f"Inputs a {unit} by the best call; ratios of times, eager to compiled, over pairs of "
        "calls in alternation: the median, and the quartiles in brackets. The last column is "
        "the same for batches one sixteenth short, which the compiled form fills up. Compiling "
        "is with an empty cache, in seconds by the clock and by the processor (in brackets); that of "
        "forward passes, which come first, includes importing the compiler.",
        "",
        "| model | batch | form | pass | compiling | eager | compiled | ratio | 15/16 full |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, size, form in CASES:
        arguments = ["--device", options.device, "--seconds", str(options.seconds)]
        for kind, row in zip(
            KINDS, in_a_process([*arguments, "--one", name, str(size), form]), strict=True
        ):
            low, high = row["quartiles"]
            lines.append(
                f"| {name} | {size} | {form} | {kind} | "
                f"{row['wall']:.0f} ({row['processor']:.0f}) | {row['eager']:,.0f} | "
                f"{row['compiled']:,.0f} | {row['ratio']:.2f} ({low:.2f}–{high:.2f}) | "
                f"{row['padded']:.2f} |"
            )
            print(lines[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
