"""What a suite says of models that look more robust than they are, and `robench validate` after it.

    python benchmarks/planted_masks.py                                  # undefended, and the controls
    python benchmarks/planted_masks.py --network robust                 # on one that keeps half
    python benchmarks/planted_masks.py --network cifar10-jpeg --data data
    python benchmarks/planted_masks.py --only votes jpeg --n 100 --again

The gallery is ``tests/support/mask_gallery``: each mask comes with a yardstick, a hand-made attack
that knows it. Masks that hide a network behind a robust one are planted on the undefended network
alone. Each mask's figures are kept under ``build/planted_masks``, so that a campaign that was
interrupted goes on; ``--again`` makes those of the chosen masks anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peers import machine

from robench.api import prepare
from robench.datasets import Dataset, load_dataset
from robench.request import Request
from robench.validity.validation import validate

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent / "tests" / "support"))

from mask_gallery import GALLERY, Ground, PlantedMask, ground_of, withstands  # noqa: E402

_RUNS = _HERE.parent / "build" / "planted_masks"
_CLOSE = 3.0
"""Points that a number may lie above the yardstick."""


@dataclass(frozen=True)
class Place:
    """A network to plant masks on."""

    network: str
    robust: str
    eps: str
    dataset: str = "digits"
    levels: int = 16

    @property
    def radius(self) -> float:
        """ε in [0, 1]."""
        over, _, under = self.eps.partition("/")
        return float(over) / float(under or 1)


_DIGITS = "digits/Linf-0.2/"
_CIFAR = "cifar10-jpeg/Linf-8_255/resnet10-"
_PLACES = {
    "undefended": Place(_DIGITS + "standard", _DIGITS + "pgd-at", "0.2"),
    "robust": Place(_DIGITS + "pgd-at", _DIGITS + "trades", "0.25"),
    "cifar10-jpeg": Place(_CIFAR + "pgd-at", _CIFAR + "trades", "8/255", "cifar10-jpeg", 255),
}


@dataclass(frozen=True)
class Campaign:
    """One network, so many samples, one seed."""

    name: str
    n: int
    seed: int
    suite: str
    data: Path | None

    @property
    def place(self) -> Place:
        return _PLACES[self.name]

    def file(self, mask: PlantedMask) -> Path:
        """Where a mask's figures are kept."""
        return _RUNS / f"{self.name}-{self.suite}-{self.n}-{self.seed}" / f"{mask.name}.json"

    def samples(self, split: str) -> Dataset:
        """Those of the test set are the first n, as robench takes them."""
        data = load_dataset(self.place.dataset, split=split, root=self.data)
        return data.subset(self.n) if split == "test" else data

    def masks(self, only: Sequence[str]) -> list[PlantedMask]:
        """Those that the network is good for."""
        chosen = [GALLERY[name] for name in only] if only else list(GALLERY.values())
        if self.name == "undefended":
            return chosen
        return [mask for mask in chosen if not mask.branches and not mask.sound]

    def measure(self, mask: PlantedMask, ground: Ground) -> dict[str, Any]:
        """The suite's number, the yardstick's, and what validation makes of it."""
        data = self.samples("test")
        inputs = data.batch(range(len(data)))
        started = time.perf_counter()
        correct, left = withstands(mask, ground, inputs, data.labels, seed=self.seed)
        middle = time.perf_counter()
        request = Request(
            models=(mask.build(ground),),
            name=mask.name,
            dataset=data,
            norm="Linf",
            eps=self.place.eps,
            n=self.n,
            suite=self.suite,
            seed=self.seed,
        )
        (found,) = validate(prepare(request))
        named = [diagnosis.test for diagnosis in found.masked]
        return {
            "mask": mask.name,
            "clean_acc": 100 * float(correct.float().mean()),
            "robust_acc": found.robust_acc,
            "yardstick": 100 * float(left.float().mean()),
            "best_known_acc": found.best_known_acc,
            "verdict": found.verdict,
            "causes": [test for test in named if test in mask.causes],
            "others": [test for test in named if test not in mask.causes],
            "lowered": {t.countermeasure: t.lowered_by for t in found.trials if t.finds},
            "untried": {t.countermeasure: t.message for t in found.trials if not t.tried},
            "evidence": {d.test: d.evidence for d in found.masked},
            "reasons": found.reasons,
            "yardstick_seconds": middle - started,
            "seconds": time.perf_counter() - middle,
            "validate_seconds": found.seconds,
        }


def render(campaign: Campaign, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the masks and one of the controls, and what they come to."""
    place = campaign.place
    lines = [
        f"## {campaign.name}: {place.network}",
        "",
        f"{place.dataset}, Linf {place.eps}, n = {campaign.n}, seed {campaign.seed}.",
        "",
    ]
    columns = ["mask", "clean", campaign.suite, "validated", "yardstick", "verdict"]
    columns += ["cause named", "said besides", "lowered by"]
    for sound in (False, True):
        shown = [row for row in rows if GALLERY[row["mask"]].sound == sound]
        if shown:
            columns[0] = "control" if sound else "mask"
            lines += [_row(columns), _row(["---"] * len(columns)), *map(_cells, shown), ""]
    return [*lines, *_summary(rows)]


def _cells(row: dict[str, Any]) -> str:
    columns = ("clean_acc", "robust_acc", "best_known_acc", "yardstick")
    lowered = [f"{name} {points:.1f}" for name, points in row["lowered"].items()]
    told = (row["causes"], row["others"], lowered)
    accuracies = (f"{row[column]:.1f}" for column in columns)
    return _row([row["mask"], *accuracies, row["verdict"], *(", ".join(t) or "–" for t in told)])


def _summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who is missed, and who is suspected without reason."""
    masks = [row for row in rows if not GALLERY[row["mask"]].sound]
    controls = [row for row in rows if GALLERY[row["mask"]].sound]

    def above(column: str) -> list[str]:
        return [row["mask"] for row in masks if row[column] > row["yardstick"] + _CLOSE]

    below = [row["mask"] for row in masks if row["best_known_acc"] < row["yardstick"]]
    alarms = [row["mask"] for row in controls if row["verdict"] != "stands" or row["others"]]
    told = {
        f"more than {_CLOSE:g} points above the yardstick by the suite": above("robust_acc"),
        f"more than {_CLOSE:g} points above it when validated": above("best_known_acc"),
        "below it when validated": below,
        "without their cause named": [row["mask"] for row in masks if not row["causes"]],
    }
    lines = [f"- {_counted(names, len(masks))} {what}." for what, names in told.items()]
    return [*lines, f"- {_counted(alarms, len(controls))} controls raise an alarm.", ""]


def _counted(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of {total}" + (f" ({', '.join(names)})" if names else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def kept(campaign: Campaign) -> list[dict[str, Any]]:
    """All figures of a campaign so far, in the gallery's order."""
    files = [campaign.file(mask) for mask in GALLERY.values()]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=sorted(_PLACES), default="undefended")
    parser.add_argument("--only", nargs="*", default=[], choices=list(GALLERY), metavar="MASK")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--data", type=Path, help="the folder that holds cifar10-jpeg/test/…")
    parser.add_argument("--again", action="store_true", help="measure once more what is kept")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "planted_masks.md")
    arguments = parser.parse_args()
    campaign = Campaign(
        arguments.network, arguments.n, arguments.seed, arguments.suite, arguments.data
    )
    place = campaign.place
    ground = ground_of(
        place.network, place.radius, place.robust, campaign.samples("train"), place.levels
    )
    for mask in campaign.masks(arguments.only):
        file = campaign.file(mask)
        if arguments.again or not file.exists():
            torch.manual_seed(arguments.seed)
            row = campaign.measure(mask, ground)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row))
            print(_cells(row), f"{row['seconds']:.0f} s", flush=True)
        page = ["# Planted masks", "", *machine("cpu")]
        for name in _PLACES:
            if rows := kept(other := replace(campaign, name=name)):
                page += render(other, rows)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(page))


if __name__ == "__main__":
    main()
