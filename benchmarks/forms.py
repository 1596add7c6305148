"""Forms of a model's search beside each other: the whole of a shortened aa-standard in each.

    OMP_NUM_THREADS=1 python benchmarks/forms.py

Two networks of ordinary size with random weights and data, a CIFAR ResNet-18 and a vision
transformer of 5.4 M parameters: for speed, the weights do not matter; and the digits zoo's own
ResNet on its data. Every form searches the
same samples with AutoAttack's four attacks at a twenty-fifth of their budgets, one after the
other in alternation; the figure is the process's own time, since a machine that is shared with
others takes turns. What a form is measured against is the same search without it. A form whose
passes take more than twice as long as those it stands in for is not run as a whole.

A form stays in robench only while this shows a gain of 1.15. Writes
``benchmarks/results/forms.md``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from peer_workers import Job, job_for, specification
from torch import nn

from robench.acceleration.search_models import SearchModel, SearchModels, Variant, build_variant
from robench.attacks.losses import LOSSES, Loss
from robench.datasets import ArrayDataset
from robench.devices import resolve_device
from robench.evaluation.cascade import Cascade
from robench.evaluation.environment import describe_environment
from robench.evaluation.prepared_model import PreparedModel, Settings, prepare_model
from robench.models import wrap_module
from robench.models.architectures.vit import VisionTransformer
from robench.models.wrapper import RobenchModel

RESULT = Path(__file__).resolve().parent / "results" / "forms.md"
_RATED = 4
"""Inputs of the passes whose rate is shown"""
_DIGITS_N = 250
_LONG_CALL = 5.0
"""Seconds of one call that need no second"""
_HOPELESS = 2.0
"""Times that a form's passes may take as long as others' before it is not run as a whole"""

Build = Callable[[RobenchModel], SearchModel | None]


def variant(**fields: object) -> Build:
    return lambda model: build_variant(model, Variant(**fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Form:
    """What is switched on, beside what it is measured against."""

    name: str
    build: Build
    against: str = "as it is"


RESNET = (
    Form("as it is", SearchModel),
    Form("folded", variant(folded=True)),
    Form("folded, channels last", variant(folded=True, channels_last=True)),
    Form("bf16 folded", variant(dtype=torch.bfloat16, folded=True), against="folded"),
)
DIGITS = (
    *RESNET[:2],
    Form("folded, channels last", variant(folded=True, channels_last=True), against="folded"),
)
TRANSFORMER = (
    Form("as it is", SearchModel),
    Form("bf16", variant(dtype=torch.bfloat16)),
)


def transformer_job(n: int, eps: str, seed: int) -> Job:
    """As ``job_for`` makes one of a ResNet-18."""
    job = job_for("aa-short", "random:resnet18", n=n, eps=eps, seed=seed)
    torch.manual_seed(0)
    network: nn.Module = VisionTransformer(10, 3, 32, 4, 192, 12, 3, 4.0).eval()
    with torch.no_grad():
        job.labels = network(job.inputs).argmax(dim=1)
    job.dataset = ArrayDataset(job.inputs, job.labels, name="random", num_classes=10)
    job.model = wrap_module(network, num_classes=10, name="vit", dataset="random")
    return job


def rates(model: SearchModel, job: Job) -> tuple[float, float]:
    """Inputs a second of the process's own time, forward and with gradients."""
    points, labels = job.inputs[:_RATED], job.labels[:_RATED]
    loss = Loss(LOSSES["ce"], labels, labels)

    def rate(call: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(4):
            started = time.process_time()
            call()
            best = min(best, time.process_time() - started)
            if best > _LONG_CALL:
                break
        return len(points) / best

    forward = rate(lambda: model.logits(points))
    return forward, rate(lambda: model.gradient(points, loss))


def whole(job: Job, models: SearchModels, clean: PreparedModel) -> tuple[float, float, int]:
    """Process's seconds of all four attacks, those of Square, and samples broken."""
    count = len(job.dataset)
    choice = replace(clean.choice, models=models, batch_size=count)
    clean = replace(clean, choice=choice, shard_size=count)
    cascade = Cascade(specification(job), clean)
    started = time.process_time()
    attacked = cascade.run(torch.zeros(len(clean), *job.dataset.input_shape))
    seconds = time.process_time() - started
    square = sum(stage.seconds for stage in attacked.stages if stage.name == "square")
    return seconds, square, int((attacked.stage >= 0).sum())


def measure(title: str, job: Job, forms: tuple[Form, ...], repeats: int) -> list[str]:
    """The table of one network."""
    settings = Settings(seed=job.seed, precision="fp32", batch_size=len(job.dataset), workers=1)
    clean = prepare_model(job.model, job.dataset, job.threat_model, settings, [])
    models: dict[str, SearchModel] = {}
    known: dict[str, tuple[float, float]] = {}
    notes: dict[str, str] = {}
    for form in forms:
        built = form.build(job.model)
        if built is None:
            notes[form.name] = "not to be had on this processor"
            continue
        known[form.name] = rates(built, job)
        base = known[form.against]
        slower = max(b / m for b, m in zip(base, known[form.name], strict=True))
        if slower > _HOPELESS:
            notes[form.name] = f"not run: its passes take up to {slower:.0f} times as long"
            continue
        models[form.name] = built
    seen: dict[str, list[tuple[float, float, int]]] = {name: [] for name in models}
    for _ in range(repeats):
        for form in forms:
            if form.name not in models:
                continue
            seen[form.name].append(whole(job, SearchModels.all_on(models[form.name]), clean))
            print(title, form.name, seen[form.name][-1], flush=True)
    lines = [
        f"## {title}",
        "",
        "| form | forward a second | gradients a second | whole, seconds | of them Square (by the "
        "clock) | broken | against | gain |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for form in forms:
        forward, gradient = known.get(form.name, (0.0, 0.0))
        shown = [f"{forward:.1f}" if forward else "", f"{gradient:.1f}" if gradient else ""]
        if form.name not in models:
            lines.append(f"| {form.name} | {' | '.join(shown)} | {notes[form.name]} | | | | |")
            continue
        runs = seen[form.name]
        seconds = statistics.median(run[0] for run in runs)
        ratios = [other[0] / run[0] for other, run in zip(seen[form.against], runs, strict=True)]
        gain = "" if form.name == form.against else f"{statistics.median(ratios):.2f}"
        between = "" if not gain else f" ({min(ratios):.2f} … {max(ratios):.2f})"
        square = statistics.median(run[1] for run in runs)
        against = "" if not gain else form.against
        lines.append(
            f"| {form.name} | {' | '.join(shown)} | {seconds:.0f} | {square:.0f} | {runs[0][2]} | "
            f"{against} | {gain}{between} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--eps", default="1/255")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=["resnet", "transformer", "digits"])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    here = describe_environment((resolve_device("cpu"),), "", 0)
    capability = torch.backends.cpu.get_cpu_capability()
    lines = [
        "# Forms of the search's model",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {here.device_name} ({capability}), "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}; the machine was shared "
        f"with other work (load {os.getloadavg()[0]:.0f} on {os.cpu_count()} processors when this "
        "began).",
        "",
        f"Command: `OMP_NUM_THREADS=1 python benchmarks/forms.py --n {options.n} "
        f"--eps {options.eps} --seed {options.seed} --repeats {options.repeats} "
        f"--networks {' '.join(options.networks)} --out {os.path.relpath(options.out)}`",
        "",
        f"AutoAttack's four attacks in L∞ at a twenty-fifth of their budgets on n = {options.n} "
        f"random images of 3×32×32, ε = {options.eps}, seed {options.seed}; on the digits, "
        f"n = {_DIGITS_N}, ε = 0.2. Seconds are the "
        f"process's own, the median of {options.repeats}; the gain is the median over runs in "
        "alternation, with the least and the greatest in brackets.",
        "",
    ]
    if "resnet" in options.networks:
        job = job_for(
            "aa-short", "random:resnet18", n=options.n, eps=options.eps, seed=options.seed
        )
        lines += measure("ResNet-18, 11.2 M parameters", job, RESNET, options.repeats)
    if "transformer" in options.networks:
        job = transformer_job(options.n, options.eps, options.seed)
        title = "Vision transformer, 5.4 M parameters"
        lines += measure(title, job, TRANSFORMER, options.repeats)
    if "digits" in options.networks:
        job = job_for("aa-short", "digits/Linf-0.2/pgd-at", n=_DIGITS_N, seed=options.seed)
        title = "digits/Linf-0.2/pgd-at, a ResNet on 1×8×8"
        lines += measure(title, job, DIGITS, options.repeats)
    options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
