"""Minimum-norm attacks: the optimum, Carlini & Wagner's passes, and curves beside fixed radii.

    python benchmarks/curves.py                                  # every digits model
    python benchmarks/curves.py --models pgd-at --n 100 --autoattack pgd-at

Three tables. How near FMN and DDN come in 100 steps to the least perturbation of a linear model, which
is known. How many digits they break at an L2 radius beside CW-L2 at as many passes and at five times
as many. And the curve of one FMN run beside PGD-100, and beside AutoAttack, at five Linf radii. All go
through ``robench.evaluate``: sizes are those that the original model was fooled by. Records are kept
under ``build/curves``, so that an interrupted campaign goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import machine
from torch import nn

import robench
from robench.models import list_cards
from robench.records import AttackSpec, Suite
from robench.reporting.curves import MINIMUM_SIZE, WORST_CASE, curve_of
from robench.reporting.model_results import collect
from robench.results import StoredRecord

_HERE = Path(__file__).resolve().parent
_RECORDS = _HERE.parent / "build" / "curves"
_RADII = ("0.05", "0.1", "0.15", "0.2", "0.25")
_L2 = "0.5"
_DUAL = {"Linf": 1.0, "L2": 2.0, "L1": float("inf")}
_PASSES = 300
"""What ``standard`` spends on a sample under L2"""


def attacks(*entries: tuple[str, str, dict[str, Any]]) -> Suite:
    specs = tuple(
        AttackSpec(name=name, attack=kind, params=params) for name, kind, params in entries
    )
    return Suite(name="benchmark", attacks=specs)


def linear(seeds: Sequence[int]) -> list[str]:
    """Found sizes over the closed form, lead / dual norm, on random two-class models."""
    lines = ["| attack | norm | samples | median | largest |", "|---|---|---|---|---|"]
    for kind, norm in (("fmn", "Linf"), ("fmn", "L2"), ("fmn", "L1"), ("ddn", "L2")):
        ratios = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            weight = torch.randn(2, 16, generator=generator)
            inputs = 0.45 + 0.1 * torch.rand(64, 1, 4, 4, generator=generator)
            layer = nn.Linear(16, 2)
            module = nn.Sequential(nn.Flatten(), layer)
            with torch.no_grad():
                layer.weight.copy_(weight)
                layer.bias.copy_(-(weight @ inputs.flatten(1).mean(dim=0)))
                logits = module(inputs)
            slope = float(torch.linalg.vector_norm(weight[0] - weight[1], ord=_DUAL[norm]))
            least = (logits[:, 0] - logits[:, 1]).abs().numpy() / slope
            (stored,) = robench.evaluate(
                module,
                (inputs, logits.argmax(dim=1)),
                attacks((kind, kind, {"steps": 100})),
                threat_model=f"{norm}-0.01",
                input={"channels": 1},
                workers=1,
            )
            ratios.append(stored.table[MINIMUM_SIZE].to_numpy(dtype=float) / least)
        found = np.concatenate(ratios)
        cells = f"{len(found)} | {np.median(found):.4f} | {found.max():.4f}"
        lines.append(f"| {kind} | {norm} | {cells} |")
    return lines


def finds(models: Sequence[str], n: int) -> list[str]:
    """Broken samples at one L2 radius, and the median size."""
    steps = _PASSES // 5
    suite = attacks(
        (f"ddn-{steps}", "ddn", {"steps": steps}),
        (f"fmn-{steps}", "fmn", {"steps": steps}),
        (f"ddn-{_PASSES}", "ddn", {"steps": _PASSES}),
        (f"fmn-{_PASSES}", "fmn", {"steps": _PASSES}),
        (f"cw-l2-{_PASSES}", "cw-l2", {"rounds": 5, "steps": _PASSES // 5}),
        (f"cw-l2-{5 * _PASSES}", "cw-l2", {"rounds": 5, "steps": _PASSES}),
    )
    names = [spec.name for spec in suite.attacks]
    lines = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for model in models:
        records = robench.evaluate(
            model, "digits", suite, n=n, threat_model=f"L2-{_L2}", results=_RECORDS
        )
        lines.append(f"| {model} | {' | '.join(map(_broken, records))} |")
    return lines


def _broken(stored: StoredRecord) -> str:
    median = float(stored.table[MINIMUM_SIZE].median())
    return f"{int((stored.table['outcome'] == 'broken').sum())} ({median:.4f})"


def curves(models: Sequence[str], suite: Suite | str, n: int) -> list[str]:
    """One FMN run beside another attack at every radius."""
    columns = ["model", *_RADII, "furthest above", "furthest below"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for model in models:
        (run,) = robench.evaluate(model, "digits", "minimum-norm", n=n, results=_RECORDS)
        fixed = robench.evaluate(
            model, "digits", suite, n=n, norm="Linf", eps=_RADII, results=_RECORDS
        )
        (result,) = collect([run])
        curve = curve_of(result, run.record.attack.name, collect(fixed))
        points = [point for point in curve.points if point.source == WORST_CASE]
        cells = [
            f"{curve.robust_acc(p.eps).estimate:.1f} / {p.robust_acc.estimate:.1f}" for p in points
        ]
        gaps = [p.difference.estimate for p in points]
        lines.append(f"| {model} | {' | '.join(cells)} | {max(gaps):+.1f} | {min(gaps):+.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", help="of the digits zoo; default: all of it")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--autoattack", nargs="*", default=[], help="models to run it on as well")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "curves.md")
    arguments = parser.parse_args()
    models = arguments.models or [located.card.name for located in list_cards("digits")]
    lines = ["# Minimum-norm attacks and curves", "", *machine("cpu")]
    lines += ["## Beside the optimum", ""]
    lines += ["Found size over the least one of a linear model, 100 steps.", "", *linear(range(4))]
    lines += ["", f"## Beside CW-L2, L2 ε = {_L2}", ""]
    lines += [f"Samples broken of {arguments.n}, by passes each, and the median size.", ""]
    lines += [*finds(models, arguments.n), ""]
    pgd = attacks(("pgd-100", "pgd", {"steps": 100, "relative_step_size": 0.1}))
    others: tuple[tuple[str, Suite | str, Sequence[str]], ...] = (
        ("PGD-100", pgd, models),
        ("AutoAttack", "aa-standard", arguments.autoattack),
    )
    for name, suite, tried in (other for other in others if other[2]):
        lines += [f"## One FMN run beside {name} at five radii", ""]
        lines += [
            f"Robust accuracy in percent, the curve's / {name}'s, under Linf, n = {arguments.n}; in points "
            "how far the curve is above it at most, and below."
        ]
        lines += ["", *curves(tried, suite, arguments.n), ""]
    arguments.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
