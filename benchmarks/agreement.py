"""Does robench's ``aa-standard`` give AutoAttack's number, and how much sooner?

    python benchmarks/agreement.py                  # every digits model, Linf and L2
    python benchmarks/agreement.py --models digits/Linf-0.2/mart --norms Linf

The same samples and budgets as ``pyautoattack``, verdicts by the same adjudicator. Where the two
numbers differ by more than 0.2 points, or robench's is the higher one, both are run with two more
seeds. robench's number, the median of its seeds, agrees if it lies in the reference's range or at
most 0.2 points below: never above. One of the networks has five classes: it is trained here, on the
digits with their labels modulo five.

Each run is kept under ``build/agreement``, so that an interrupted campaign goes on; each time of
robench's is followed by one of the reference's. Where the machine is busy with other things, leave
times out with ``--accuracy-only``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import PROTOCOL, Table, machine, measure

from robench.datasets import load_dataset
from robench.defenses import resolve, train
from robench.models import list_cards
from robench.records import ArchitectureSpec
from robench.threat_models import ThreatModel

_HERE = Path(__file__).resolve().parent
_RUNS = _HERE.parent / "build" / "agreement"
_EPS = {"Linf": "0.2", "L2": "0.5"}
_CLOSE = 0.2
_FIVE = "five classes"
_LEGEND = [
    "\"Agrees\": robench's median is in the range of the reference's seeds or at most 0.2 points "
    "below it, never above; the difference is that of the medians. AutoAttack's own budget for a "
    "survivor is 7,856 forward and 1,910 backward passes. Seconds are those of seed 0, by both.",
    "",
]


@dataclass(frozen=True)
class Comparison:
    """robench's run and the reference's, on one model and norm."""

    model: str
    norm: str
    n: int
    runs: tuple[dict[str, Any], ...]
    reference_runs: tuple[dict[str, Any], ...]

    @property
    def ours(self) -> tuple[float, ...]:
        """Robust accuracy in percent, of each of robench's runs."""
        return tuple(float(run["robust_acc"]) for run in self.runs)

    @property
    def reference(self) -> tuple[float, ...]:
        """That of each of the reference's runs."""
        return tuple(float(run["robust_acc"]) for run in self.reference_runs)

    @property
    def difference(self) -> float:
        return statistics.median(self.ours) - statistics.median(self.reference)

    @property
    def seconds(self) -> tuple[float, float]:
        """robench's and the reference's, by the runs with the same seed."""
        return self.runs[0]["seconds"], self.reference_runs[0]["seconds"]

    @property
    def agrees(self) -> bool:
        """In the reference's range or at most 0.2 points below it: never above."""
        low, high = min(self.reference), max(self.reference)
        return low - _CLOSE - 1e-9 <= statistics.median(self.ours) <= high + 1e-9


def five_class_model() -> tuple[str, str]:
    """A card and a test set whose labels are digits modulo five; made once."""
    folder = _RUNS / "five"
    test = folder / "digits-modulo-5-test.npz"
    card = folder / "pgd-at" / "card.toml"
    if not card.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for split, path in (("train", folder / "digits-modulo-5.npz"), ("test", test)):
            data = load_dataset("digits", split=split)
            everything = range(len(data))
            np.savez(path, images=data.batch(everything).numpy(), labels=data.labels.numpy() % 5)
        job = resolve(
            "pgd-at",
            folder / "digits-modulo-5.npz",
            architecture=ArchitectureSpec(
                name="digits_resnet", arguments={"width": 16, "blocks": 4}
            ),
            threat_model=ThreatModel.of("Linf", "0.2"),
            folder=card.parent,
            device="cpu",
            settings={"epochs": 30, "batch_size": 32, "ema": 0.99},
        )
        train(job)
    return str(card), str(test)


def kept(table: Table, peer: str, seed: int, device: str) -> dict[str, Any]:
    """One run; from an earlier campaign where there is one."""
    name = f"{Path(table.model).parent.name if '.toml' in table.model else table.model}"
    file = _RUNS / f"{name}-{table.norm}-{table.eps}-{table.n}-{peer}-{seed}.json".replace("/", "_")
    if not file.exists():
        print(table.title, "seed", seed, flush=True)
        result = measure(table, peer, seed, device, _HERE.parent / "build" / "peers")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result))
    run: dict[str, Any] = json.loads(file.read_text())
    return run


def compare(table: Table, name: str, device: str) -> Comparison:
    """As many runs as the answer needs, one of each or three."""
    runs = {peer: [kept(table, peer, 0, device)] for peer in ("robench", "pyautoattack")}
    ours, theirs = (done[0]["robust_acc"] for done in runs.values())
    if ours > theirs or theirs - ours > _CLOSE + 1e-9:
        for seed in (1, 2):
            for peer, done in runs.items():
                done.append(kept(table, peer, seed, device))
    return Comparison(
        name, table.norm, table.n, tuple(runs["robench"]), tuple(runs["pyautoattack"])
    )


def render(comparisons: list[Comparison], timed: bool) -> list[str]:
    """A Markdown table: accuracies, passes a survivor, and seconds if they were undisturbed."""
    columns = ["model", "norm, ε", "n", "robench (seeds)", "pyautoattack (seeds)", "difference"]
    columns += ["agrees"]
    columns += ["forwards, backwards a survivor"]
    columns += ["robench, s", "pyautoattack, s", "ratio"] if timed else []
    lines = [_row(columns), _row(["---"] * len(columns))]
    for c in comparisons:
        ours, reference = (
            ", ".join(f"{value:.1f}" for value in seen) for seen in (c.ours, c.reference)
        )
        passes = [c.runs[0][f"{kind}_per_survivor"] for kind in ("forwards", "backwards")]
        cells = [c.model, f"{c.norm} {_EPS[c.norm]}", str(c.n), ours, reference]
        cells += [f"{c.difference:+.1f}", "yes" if c.agrees else "no"]
        cells += ["" if math.isnan(passes[0]) else ", ".join(f"{value:.0f}" for value in passes)]
        if timed:
            mine, theirs = c.seconds
            cells += [f"{mine:.1f}", f"{theirs:.1f}", f"{theirs / mine:.2f}×"]
        lines.append(_row(cells))
    return [*lines, ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", help=f"ids, or {_FIVE!r}; default: all of digits")
    parser.add_argument("--norms", nargs="*", default=["Linf", "L2"], choices=sorted(_EPS))
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--accuracy-only", action="store_true", help="leave times out")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "agreement.md")
    arguments = parser.parse_args()
    models = arguments.models or [*(located.card.id for located in list_cards("digits")), _FIVE]
    comparisons = []
    for model in models:
        for norm in arguments.norms:
            card, data = five_class_model() if model == _FIVE else (model, None)
            table = Table("aa-standard", (), card, norm, _EPS[norm], arguments.n, dataset=data)
            comparisons.append(compare(table, model, arguments.device))
            head = ["# AutoAttack's number", "", *machine(arguments.device, PROTOCOL)]
            table_lines = render(comparisons, timed=not arguments.accuracy_only)
            arguments.out.write_text("\n".join([*head, *table_lines, *_LEGEND]))
    if not all(c.agrees for c in comparisons):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
