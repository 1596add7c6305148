"""What FAB and Square break when they search in low precision, beside float32.

    python benchmarks/low_precision.py
    python benchmarks/low_precision.py --model digits/Linf-0.2/mart --norm L2 --eps 0.5

Each attack alone on all samples that are classified correctly, at AutoAttack's budgets, with the
form of the network that ``--precision auto`` would have to choose there: bfloat16 for FAB, 8-bit
integers for Square. Without ``--model`` the cases below, of which those on photographs need a
folder of them. Writes ``benchmarks/results/low_precision.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from peer_workers import Job, job_for
from peers import machine

from robench.evaluation.attacked import Attacked
from robench.evaluation.cascade import Cascade
from robench.evaluation.clean_pass import CleanPass
from robench.evaluation.search_models import EagerModel, SearchModels
from robench.evaluation.settings import Settings
from robench.evaluation.trial import Trial
from robench.records import AttackSpec

ATTACKS = (
    AttackSpec(name="fab-t", attack="fab", params={"steps": 100, "targets": 9}),
    AttackSpec(name="square", attack="square", params={"queries": 5000}),
)
RESULT = Path(__file__).resolve().parent / "results" / "low_precision.md"
_CHECKED = 128


@dataclass(frozen=True)
class Case:
    """One model and ball."""

    model: str
    norm: str
    eps: str
    n: int = 500
    dataset: str | None = None


_PHOTOGRAPHS = "data/cifar10-jpeg/test"
CASES = (
    Case("digits/Linf-0.2/pgd-at", "Linf", "0.2"),
    Case("digits/Linf-0.2/pgd-at", "L2", "0.5"),
    Case("digits/Linf-0.2/trades", "L2", "0.8"),
    Case("digits/Linf-0.2/mart", "Linf", "0.2"),
    Case("cifar10-jpeg/Linf-8_255/resnet10-pgd-at", "Linf", "8/255", 200, _PHOTOGRAPHS),
    Case("cifar10-jpeg/Linf-8_255/resnet10-trades", "L2", "0.5", 200, _PHOTOGRAPHS),
)


def run(job: Job, spec: AttackSpec, clean: CleanPass, models: SearchModels) -> Attacked:
    """One attack on what is classified correctly."""
    cascade = Cascade(
        spec,
        job.model,
        job.threat_model,
        models,
        clean.adjudicator,
        batch_size=1024,
        shard_size=clean.shard_size,
        workers=2,
        seed=job.seed,
    )
    return cascade.run(clean, job.dataset.input_shape)


def rows(case: Case) -> list[str]:
    """A line of the table for each attack."""
    job = job_for(
        "low precision", case.model, dataset=case.dataset, n=case.n, norm=case.norm, eps=case.eps
    )
    job.model.requires_grad_(False)
    clean = CleanPass(job.model, job.dataset, job.threat_model, Settings(precision="fp32"), [])
    plain = EagerModel(job.model)
    trial = Trial(job.model, plain, job.inputs[:_CHECKED], job.labels[:_CHECKED], job.threat_model)
    exact = trial.exact_guess
    bf16 = trial.agreeing("bf16")
    int8 = trial.quantised()
    lines = []
    for spec in ATTACKS:
        form = int8 if spec.attack == "square" else next(iter(bf16), None)
        if form is None:
            lines.append(
                f"| {case.model} | {case.norm} {case.eps} | {spec.name} | does not agree |"
            )
            continue
        expected = run(job, spec, clean, SearchModels.all_on(exact))
        seen = run(job, spec, clean, SearchModels(form, form, form, exact))
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
    cases = [Case(a.model, a.norm, a.eps, a.n, a.dataset)] if a.model else CASES
    header = [
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
    ]
    lines = [
        "# Attacks in low precision",
        "",
        *machine("cpu", "Each attack alone, AutoAttack's budgets, seed 0."),
        f"| {' | '.join(header)} |",
        "|" + " --- |" * len(header),
    ]
    for case in cases:
        if case.dataset is None or "/" not in case.dataset or Path(case.dataset).exists():
            lines += rows(case)
    if not a.model:
        RESULT.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
