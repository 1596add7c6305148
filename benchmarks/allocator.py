"""What it gains that memory stays with the process: passes with glibc's settings and with ours.

    python benchmarks/allocator.py

Each measurement has a process of its own, on one thread, as robench's workers are; the best call
of two seconds counts, with and without in alternation. Writes ``benchmarks/results/allocator.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from peer_workers import job_for
from peers import machine

from robench.allocator import keep_freed_memory
from robench.attacks.losses import LOSSES, Loss
from robench.evaluation.search_models import EagerModel
from robench.evaluation.timing import tiled
from robench.evaluation.variants import VARIANTS, build_variant

CASES = (
    ("digits/Linf-0.2/pgd-at", 256),
    ("digits/Linf-0.2/pgd-at", 512),
    ("random:resnet18", 32),
    ("random:resnet18", 125),
)
FORMS = ("fp32", "fp32 folded", "fp32 folded channels-last", "bf16 folded channels-last")
RESULT = Path(__file__).parent / "results" / "allocator.md"


def rates(model_name: str, batch: int, seconds: float = 2.0) -> dict[str, tuple[float, float]]:
    """Inputs a second for forward passes and for gradients, by form."""
    job = job_for("rates", model_name, n=min(batch, 100))
    points, labels = tiled(job.inputs, batch), tiled(job.labels, batch)
    loss = Loss(LOSSES["ce"], labels, labels)
    variants = {variant.name: variant for kind in VARIANTS.values() for variant in kind}
    measured = {}
    for name in FORMS:
        form = EagerModel(job.model) if name == "fp32" else build_variant(job.model, variants[name])
        if form is None:
            continue
        best = []
        for call in (partial(form.logits, points), partial(form.gradient, points, loss)):
            call()
            times: list[float] = []
            while sum(times) < seconds:
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
            best.append(batch / min(times))
        measured[name] = (best[0], best[1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "BATCH", "KEEP"))
    arguments = parser.parse_args()
    if arguments.child:
        model, batch, keep = arguments.child
        torch.set_num_threads(1)
        if keep == "keep" and not keep_freed_memory():
            raise SystemExit("This C library has no such setting, or the environment has its own")
        print(json.dumps(rates(model, int(batch))))
        return
    lines = [
        "# Memory that stays with the process",
        "",
        *machine("cpu", "Inputs a second on one thread, glibc's settings → robench's."),
        "glibc learns how much to keep from the largest block freed so far, so what it costs depends "
        "on what the process did before; here it has loaded a model and data.",
        "",
        "| model | batch | form | forward | gradient |",
        "|---|---:|---|---:|---:|",
    ]
    for model, batch in CASES:
        found = []
        for keep in ("leave", "keep"):
            command = [sys.executable, __file__, "--child", model, str(batch), keep]
            done = subprocess.run(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
        for form in found[0]:
            pairs = zip(found[0][form], found[1][form], strict=True)
            cells = [f"{a:,.0f} → {b:,.0f} ({b / a:.2f}×)" for a, b in pairs]
            lines.append(f"| {model} | {batch} | {form} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
