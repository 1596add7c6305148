"""Does robench's ``aa-standard`` give AutoAttack's number?

    python benchmarks/agreement.py                  # every digits model, Linf and L2
    python benchmarks/agreement.py --models digits/Linf-0.2/mart --norms Linf

The same samples and budgets as ``pyautoattack``, verdicts by the same adjudicator. Where the two
numbers differ by more than 0.2 points, or robench's is the higher one, the reference is run with
two more seeds. robench's number agrees if it lies in the reference's range or at most 0.2 points
below: never above. One of the networks has five
classes: it is trained here, on the digits with their labels modulo five.

Each run is kept under ``build/agreement``, so that an interrupted campaign goes on. Times are not
reported: see ``peers.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peers import Table, machine, measure

from robench.datasets import load_dataset
from robench.defenses import train
from robench.models import list_cards
from robench.records import ArchitectureSpec
from robench.threat_models import ThreatModel

_HERE = Path(__file__).resolve().parent
_RUNS = _HERE.parent / "build" / "agreement"
_EPS = {"Linf": "0.2", "L2": "0.5"}
_CLOSE = 0.2
_FIVE = "five classes"


@dataclass(frozen=True)
class Comparison:
    """robench's number and the reference's, on one model and norm."""

    model: str
    norm: str
    n: int
    ours: float
    reference: tuple[float, ...]

    @property
    def difference(self) -> float:
        return self.ours - statistics.median(self.reference)

    @property
    def agrees(self) -> bool:
        """In the reference's range or at most 0.2 points below it: never above."""
        low, high = min(self.reference), max(self.reference)
        return low - _CLOSE - 1e-9 <= self.ours <= high + 1e-9


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
        train(
            "pgd-at",
            dataset=str(folder / "digits-modulo-5.npz"),
            architecture=ArchitectureSpec(
                name="digits_resnet", arguments={"width": 16, "blocks": 4}
            ),
            threat_model=ThreatModel.of("Linf", "0.2"),
            out_folder=card.parent,
            device="cpu",
            epochs=30,
            batch_size=32,
            ema=0.99,
        )
    return str(card), str(test)


def kept(table: Table, peer: str, seed: int, device: str) -> float:
    """Robust accuracy of one run, in percent; from an earlier campaign where there is one."""
    name = f"{Path(table.model).parent.name if '.toml' in table.model else table.model}"
    file = _RUNS / f"{name}-{table.norm}-{table.eps}-{table.n}-{peer}-{seed}.json".replace("/", "_")
    if not file.exists():
        print(table.title, "seed", seed, flush=True)
        result = measure(table, peer, seed, device, _HERE.parent / "build" / "peers")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result))
    accuracy: float = json.loads(file.read_text())["robust_acc"]
    return accuracy


def compare(table: Table, name: str, device: str) -> Comparison:
    """As many runs of the reference as the answer needs."""
    ours = kept(table, "robench", 0, device)
    reference = [kept(table, "pyautoattack", 0, device)]
    if ours > reference[0] or reference[0] - ours > _CLOSE + 1e-9:
        reference += [kept(table, "pyautoattack", seed, device) for seed in (1, 2)]
    return Comparison(name, table.norm, table.n, ours, tuple(reference))


def render(comparisons: list[Comparison]) -> list[str]:
    """A Markdown table."""
    lines = [
        "| model | norm, ε | n | robench | pyautoattack (seeds) | difference to its median | agrees |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        seeds = ", ".join(f"{value:.1f}" for value in c.reference)
        lines.append(
            f"| {c.model} | {c.norm} {_EPS[c.norm]} | {c.n} | {c.ours:.1f} | {seeds} | "
            f"{c.difference:+.1f} | {'yes' if c.agrees else 'no'} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", help=f"ids, or {_FIVE!r}; default: all of digits")
    parser.add_argument("--norms", nargs="*", default=["Linf", "L2"], choices=sorted(_EPS))
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "agreement.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = arguments.models or [*(located.card.id for located in list_cards("digits")), _FIVE]
    comparisons = []
    for model in models:
        for norm in arguments.norms:
            card, data = five_class_model() if model == _FIVE else (model, None)
            table = Table("aa-standard", (), card, norm, _EPS[norm], arguments.n, dataset=data)
            comparisons.append(compare(table, model, arguments.device))
            head = ["# AutoAttack's number", "", *machine(arguments.device)]
            arguments.out.write_text("\n".join([*head, *render(comparisons)]))
    if not all(c.agrees for c in comparisons):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
