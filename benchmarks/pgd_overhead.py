"""What PGD-20 costs beside a bare loop of as many passes: both in one process, in alternation.

    python benchmarks/pgd_overhead.py

The bare loop is twenty forward and backward passes on all samples with the steps between them;
robench drops broken samples, judges every find and the nearest point of every survivor. Prints
medians and their ratio and writes them to ``benchmarks/results/pgd_overhead.md``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from peer_workers import bare_loop, job_for, specification
from peers import PROTOCOL, machine

from robench.evaluation.cascade import Cascade
from robench.evaluation.prepared_model import Settings, prepare_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits/Linf-0.2/pgd-at")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    job = job_for("pgd-20", arguments.model, n=arguments.n)
    spec = specification(job)
    settings = Settings(device=job.device, precision="fp32", batch_size=job.batch_size)
    clean = prepare_model(job.model, job.dataset, job.threat_model, settings, [spec])

    def attack() -> float:
        cascade = Cascade(spec, clean)
        started = time.perf_counter()
        cascade.run(torch.zeros(len(clean), *job.dataset.input_shape))
        return time.perf_counter() - started

    attack()
    bare_loop(job)
    times = [(bare_loop(job)[1]["seconds"], attack()) for _ in range(arguments.repeats)]
    bare, ours = (statistics.median(column) for column in zip(*times, strict=True))
    lines = [
        "# PGD-20 beside a bare loop",
        "",
        *machine("cpu", PROTOCOL),
        f"{arguments.model}, n = {arguments.n}, fp32, {arguments.repeats} alternating runs in one "
        "process, medians: "
        f"bare loop {bare:.3f} s, robench {ours:.3f} s, ratio {ours / bare:.2f}.",
        "",
    ]
    print(lines[-2])
    out = Path(__file__).resolve().parent / "results" / "pgd_overhead.md"
    out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
