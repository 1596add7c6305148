"""What FAB and Square break when they search in low precision, beside float32.

    python benchmarks/low_precision.py
    python benchmarks/low_precision.py --model digits/Linf-0.2/mart --norm L2 --eps 0.5

Each attack alone on all samples that are classified correctly, at AutoAttack's budgets, in
bfloat16. Without ``--model`` the cases below, of which those on photographs need a folder of them. Writes ``benchmarks/results/low_precision.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from peer_workers import Job, job_for
from peers import Table, machine

from robench.acceleration.model_choice import choose_search_model
from robench.acceleration.search_models import SearchModels
from robench.evaluation.cascade import Cascade
from robench.evaluation.cascade_state import CascadeState
from robench.evaluation.prepared_model import PreparedModel, Settings, prepare_model
from robench.execution.forks import Forks
from robench.records import AttackSpec

ATTACKS = (
    AttackSpec(name="fab-t", attack="fab", params={"steps": 100, "targets": 9}),
    AttackSpec(name="square", attack="square", params={"queries": 5000}),
)
RESULT = Path(__file__).resolve().parent / "results" / "low_precision.md"
_CHECKED = 128


_TASK = "low precision"
_PHOTOGRAPHS = "data/cifar10-jpeg/test"
CASES = (
    Table(_TASK, (), "digits/Linf-0.2/pgd-at", "Linf", "0.2"),
    Table(_TASK, (), "digits/Linf-0.2/pgd-at", "L2", "0.5"),
    Table(_TASK, (), "digits/Linf-0.2/trades", "L2", "0.8"),
    Table(_TASK, (), "digits/Linf-0.2/mart", "Linf", "0.2"),
    Table(
        _TASK,
        (),
        "cifar10-jpeg/Linf-8_255/resnet10-pgd-at",
        "Linf",
        "8/255",
        n=200,
        dataset=_PHOTOGRAPHS,
    ),
    Table(
        _TASK,
        (),
        "cifar10-jpeg/Linf-8_255/resnet10-trades",
        "L2",
        "0.5",
        n=200,
        dataset=_PHOTOGRAPHS,
    ),
)
_HEADER = (
    "model",
    "norm, ε",
    "attack",
    "samples",
    "form",
    "tolerance, logits",
    "broken in float32",
    "in this form",
    "searched again",
    "then broken",
    "missed, extra",
)


def run(job: Job, spec: AttackSpec, clean: PreparedModel, models: SearchModels) -> CascadeState:
    """One attack on what is classified correctly."""
    choice = replace(clean.choice, models=models, batch_size=1024)
    cascade = Cascade(spec, replace(clean, choice=choice, executor=Forks(2)))
    return cascade.run(torch.zeros(len(clean), *job.dataset.input_shape))


def rows(case: Table) -> list[str]:
    """A line of the table for each attack."""
    job = job_for(
        case.task, case.model, dataset=case.dataset, n=case.n, norm=case.norm, eps=case.eps
    )
    job.model.requires_grad_(False)
    clean = prepare_model(
        job.model, job.dataset, job.threat_model, Settings(seed=job.seed, precision="fp32"), []
    )
    choice = choose_search_model(
        job.model,
        job.inputs[:_CHECKED],
        job.labels[:_CHECKED],
        precision="bf16",
        threat_model=job.threat_model,
        batch_size=1024,
        planned_passes=0,
    )
    form = choice.models.search
    lines = []
    for spec in ATTACKS:
        expected = run(job, spec, clean, SearchModels.all_on(choice.models.exact))
        seen = run(job, spec, clean, choice.models)
        first, *again = seen.stages
        before, after = expected.stage >= 0, seen.stage >= 0
        cells = [
            case.model,
            f"{case.norm} {case.eps}",
            spec.name,
            f"{len(clean)}",
            form.description,
            f"{form.tolerance:.3f}",
            f"{int(before.sum())}",
            f"{first.broken}",
            f"{sum(stage.attempted for stage in again)}",
            f"{int(after.sum())}",
            f"{int((before & ~after).sum())}, {int((after & ~before).sum())}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default="0.2")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--dataset")
    a = parser.parse_args()
    chosen = Table(_TASK, (), a.model, a.norm, a.eps, n=a.n, dataset=a.dataset)
    cases = [chosen] if a.model else CASES
    lines = [
        "# Attacks in low precision",
        "",
        *machine("cpu", "Each attack alone, AutoAttack's budgets, seed 0."),
        f"| {' | '.join(_HEADER)} |",
        "|" + " --- |" * len(_HEADER),
    ]
    for case in cases:
        if case.runnable:
            lines += rows(case)
    if not a.model:
        RESULT.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
