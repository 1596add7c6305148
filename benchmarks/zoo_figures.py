"""Write what ``robench run`` measured into the zoo's cards.

For each zoo model that a results folder has: its accuracy clean, under PGD-20 and under
AutoAttack, and what it gains or loses under AutoAttack against a baseline, with the interval of
the paired difference. ``python benchmarks/zoo_figures.py --help``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from robench.models import find_card, write_card
from robench.models.zoo import LocatedCard
from robench.records import Outcome
from robench.reporting.compare import compare_models
from robench.reporting.model_results import ModelResult, collect
from robench.results import RecordFilter, Store

Figures = dict[str, float | int | str]

_COLUMNS = {"pgd_20_acc": "pgd-20", "autoattack_acc": "autoattack", "auxiliary_acc": "auxiliary"}
_AUTOATTACK = "autoattack_acc"


def figures(result: ModelResult, suite: str) -> Figures:
    """What the records say, in percent, and the command that makes them."""
    found: Figures = {
        "data": f"{result.dataset.name} {result.dataset.split}",
        "n": result.n,
        "seed": result.group.seed,
        "threat_model": str(result.threat_model),
        "command": f"robench run {result.model.id} --suite {suite} --n {result.n} "
        f"--seed {result.group.seed}",
        "clean_acc": round(result.clean_acc.estimate, 2),
    }
    for key, attack in _COLUMNS.items():
        if attack in result.attacks:
            found[key] = round(100 * float(result.outcome_is(attack, Outcome.SURVIVED).mean()), 2)
    found["robust_acc"] = round(result.robust_acc.estimate, 2)
    return found


def against(baseline: ModelResult, result: ModelResult, name: str) -> Figures:
    """The difference under AutoAttack, as figures and as a sentence."""
    table = compare_models(baseline, [result]).table
    (row,) = table[table["quantity"] == _AUTOATTACK].to_dict("records")
    difference, low, high = (round(float(row[k]), 1) for k in ("difference", "low", "high"))
    if row["verdict"] == "not shown":
        verdict = f"n = {result.n} does not tell it from {name}"
    else:
        verdict = f"it {'gains' if difference > 0 else 'loses'} against {name}"
    return {
        "autoattack_gain": difference,
        "autoattack_gain_low": low,
        "autoattack_gain_high": high,
        "against_baseline": f"Under AutoAttack {row['value']:.1f} %, {name} {row['baseline']:.1f} %: "
        f"{difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), {verdict}.",
    }


def merged(known: Mapping[str, float | int | str], found: Figures) -> Figures:
    """The new figures beside those over several seeds, which keep their names and command."""
    if "seeds" not in known:
        return found
    kept = {k: v for k, v in known.items() if k not in ("seed", "threat_model", "robust_acc")}
    fresh = {k: v for k, v in found.items() if k.startswith(("auto", "aux", "against"))}
    return {**kept, **fresh, "autoattack_command": found["command"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--baseline", help="a model's id; its own card gets no difference")
    parser.add_argument("--suite", default="standard", help="the one that was run")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pool = collect(
        Store(options.results).records(),
        RecordFilter(dataset=options.dataset, n=options.n, seed=options.seed),
    )
    # A card's own threat model and weights only: a store may hold others under the same id.
    rows: list[tuple[LocatedCard, ModelResult]] = []
    for result in pool:
        located = find_card(result.model.id)
        card = located.card
        same = (card.weights.sha256, card.threat_model.identity)
        if same == (result.model.weights_sha256, result.threat_model.identity):
            rows.append((located, result))
    base = next((row for row in rows if row[0].id == options.baseline), None)
    if options.baseline is not None and base is None:
        raise SystemExit(f"{options.results} has no records of {options.baseline}'s weights")
    for located, result in rows:
        if _COLUMNS[_AUTOATTACK] not in result.attacks:
            print(located.id, "has not been under AutoAttack yet", flush=True)
            continue
        found = figures(result, options.suite)
        if base is not None and located.id != options.baseline:
            found |= against(base[1], result, base[0].card.name)
        card = located.card
        origin = card.provenance
        measured = merged(origin.measured, found)
        if measured != origin.measured:
            origin = origin.model_copy(update={"measured": measured})
            write_card(card.model_copy(update={"provenance": origin}), located.path)
        print(located.id, {k: v for k, v in found.items() if k != "command"}, flush=True)


if __name__ == "__main__":
    main()
