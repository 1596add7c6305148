"""What a suite says of models that look more robust than they are, and `robench validate` after it.

    python benchmarks/planted_masks.py                                  # undefended, and the controls
    python benchmarks/planted_masks.py --network robust                 # on one that keeps half
    python benchmarks/planted_masks.py --network cifar10-jpeg --data data
    python benchmarks/planted_masks.py --only votes jpeg --n 100 --again
    python benchmarks/planted_masks.py --minutes 9                      # a piece; the next call goes on

The gallery is ``tests/support/mask_gallery``: each mask comes with a yardstick, a hand-made attack
that knows it. Masks that hide a network behind a robust one are planted on the undefended network
alone. All is kept under ``build/planted_masks``, records of unfinished searches too, so that a campaign
that was interrupted goes on where it was; ``--again`` validates the chosen masks anew, on the suite's
records that are there. A mask that takes more than ``--limit`` seconds of processor time is left
out by name. One worker, so that seconds are those of one processor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from peers import machine

from robench.api import prepare
from robench.datasets import Dataset, load_dataset
from robench.records import Verdict
from robench.request import Request
from robench.results import Store
from robench.validity.countermeasures import CASCADE
from robench.validity.validation import protocol, validate

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

    def kept(self, mask: PlantedMask) -> Kept:
        """Where all of a mask is kept."""
        return Kept(_RUNS / f"{self.name}-{self.suite}-{self.n}-{self.seed}" / mask.name)

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

    def measure(self, mask: PlantedMask, ground: Ground, limit: float) -> dict[str, Any]:
        """The suite's number, the yardstick's, and what validation makes of it.

        Raises:
            _OverLimitError: all calls together took more seconds of processor time.
        """
        data, kept = self.samples("test"), self.kept(mask)
        if not kept.has("yardstick"):
            inputs = data.batch(range(len(data)))
            with kept.timed("yardstick_seconds", limit):
                correct, left = withstands(mask, ground, inputs, data.labels, seed=self.seed)
            shares = (100 * float(part.float().mean()) for part in (correct, left))
            kept.write("yardstick", dict(zip(("clean_acc", "yardstick"), shares, strict=True)))
        torch.manual_seed(self.seed)
        request = Request(
            models=(mask.build(ground),),
            name=mask.name,
            dataset=data,
            norm="Linf",
            eps=self.place.eps,
            n=self.n,
            suite=self.suite,
            seed=self.seed,
            results=kept.folder / "results",
            workers=1,
        )
        with kept.timed("suite_seconds", limit):
            prepared = prepare(request)
            prepared.run()
        with kept.timed("validate_seconds", limit):
            (found,) = validate(prepared)
        named = [diagnosis.test for diagnosis in found.masked]
        return {
            "mask": mask.name,
            **kept.read("yardstick"),
            "robust_acc": found.robust_acc,
            "best_known_acc": found.best_known_acc,
            "verdict": found.verdict,
            "protocol": found.protocol,
            "causes": [test for test in named if test in mask.causes],
            "others": [test for test in named if test not in mask.causes],
            "lowered": {t.countermeasure: t.lowered_by for t in found.trials if t.finds},
            "untried": {t.countermeasure: t.message for t in found.trials if not t.tried},
            "evidence": {d.test: d.evidence for d in found.masked},
            "reasons": found.reasons,
        }


class _OverLimitError(Exception):
    """A mask took too long."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a mask."""

    folder: Path

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def read(self, name: str) -> dict[str, Any]:
        """Nothing, if there is nothing."""
        file = self.folder / f"{name}.json"
        content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.json").write_text(json.dumps(content))

    @contextmanager
    def timed(self, what: str, limit: float) -> Iterator[None]:
        """Count seconds of processor time, of all calls together, also where they are interrupted.

        Raises:
            _OverLimitError: they came to more than the limit, which they cannot do inside for long.
        """
        spent, started = self.read("seconds"), time.process_time()
        before = sum(spent.values())

        def stop(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, max(limit - before, 0.01))
        try:
            yield
        except KeyboardInterrupt:
            if before + time.process_time() - started >= limit:
                raise _OverLimitError from None
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            spent[what] = spent.get(what, 0.0) + time.process_time() - started
            self.write("seconds", spent)

    def forget_validation(self) -> None:
        """All but the yardstick and the suite's records."""
        (self.folder / "row.json").unlink(missing_ok=True)
        for part in ("validations", "progress"):
            shutil.rmtree(self.folder / "results" / part, ignore_errors=True)
        store = Store(self.folder / "results")
        for stored in list(store.records()):
            if stored.record.attack.name == CASCADE:
                assert stored.path is not None
                for file in stored.path.parent.glob(f"{stored.record.key}*"):
                    file.unlink()
        self.write("seconds", self.read("seconds") | {"validate_seconds": 0.0})


def render(campaign: Campaign, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the masks and one of the controls, and what they come to."""
    place = campaign.place
    lines = [
        f"## {campaign.name}: {place.network}",
        "",
        f"{place.dataset}, Linf {place.eps}, n = {campaign.n}, seed {campaign.seed}: "
        f"`--network {campaign.name} --n {campaign.n} --suite {campaign.suite}`.",
        "",
    ]
    columns = ["mask", "clean", campaign.suite, "validated", "yardstick", "verdict"]
    columns += ["cause named", "said besides", "lowered by", "CPU s, suite", "CPU s, validate"]
    for sound in (False, True):
        shown = [row for row in rows if GALLERY[row["mask"]].sound == sound]
        if shown:
            columns[0] = "control" if sound else "mask"
            lines += [_row(columns), _row(["---"] * len(columns)), *map(_cells, shown), ""]
    known = {row["mask"] for row in rows}
    missing = [mask.name for mask in campaign.masks(()) if mask.name not in known]
    lines += [f"Not measured: {', '.join(missing)}.", ""] if missing else []
    old = [row["mask"] for row in rows if "verdict" in row and row.get("protocol") != protocol()]
    lines += [f"With fewer tests or countermeasures: {', '.join(old)}.", ""] if old else []
    return [*lines, *_summary(rows)]


def _cells(row: dict[str, Any]) -> str:
    columns = ("clean_acc", "robust_acc", "best_known_acc", "yardstick")
    accuracies = (_number(row.get(column), 1) for column in columns)
    lowered = [f"{name} {points:.1f}" for name, points in row.get("lowered", {}).items()]
    told = (row.get("causes", ()), row.get("others", ()), lowered)
    verdict = row.get("verdict") or f"over {row['limit']:g} s"
    seconds = (_number(row.get(f"{part}_seconds"), 0) for part in ("suite", "validate"))
    return _row([row["mask"], *accuracies, verdict, *(", ".join(t) or "–" for t in told), *seconds])


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who is missed, and who is suspected without reason."""
    done = [row for row in rows if "verdict" in row]
    masks = [row for row in done if not GALLERY[row["mask"]].sound]
    controls = [row for row in done if GALLERY[row["mask"]].sound]

    def above(column: str, verdicts: Sequence[str] = get_args(Verdict)) -> list[str]:
        return [
            row["mask"]
            for row in masks
            if row[column] > row["yardstick"] + _CLOSE and row["verdict"] in verdicts
        ]

    told = {
        f"more than {_CLOSE:g} points above the yardstick by the suite": above("robust_acc"),
        f"more than {_CLOSE:g} points above it when validated": above("best_known_acc"),
        "so, and not called unreliable": above("best_known_acc", ("stands", "lowered")),
        "below it when validated": [
            row["mask"] for row in masks if row["best_known_acc"] < row["yardstick"]
        ],
        "without their cause named": [row["mask"] for row in masks if not row["causes"]],
    }
    reasons = [
        f"- {name} stays above: {GALLERY[name].beyond or 'not known why'}."
        for name in above("best_known_acc")
    ]
    alarms = [row["mask"] for row in controls if row["verdict"] != "stands" or row["others"]]
    over = [row["mask"] for row in rows if "verdict" not in row]
    return [
        *(f"- {_counted(names, len(masks))} {what}." for what, names in told.items()),
        *reasons,
        f"- {_counted(alarms, len(controls))} controls raise an alarm.",
        *([f"- {_counted(over, len(rows))} took too long."] if over else []),
        "",
    ]


def _counted(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of {total}" + (f" ({', '.join(names)})" if names else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def known_rows(campaign: Campaign) -> list[dict[str, Any]]:
    """All figures of a campaign so far, in the gallery's order."""
    places = [campaign.kept(mask) for mask in GALLERY.values()]
    return [kept.read("row") | kept.read("seconds") for kept in places if kept.has("row")]


def page(seed: int) -> str:
    """All that is known of every network, of however many samples and by whatever suite."""
    lines = ["# Planted masks", "", *machine("cpu")]
    for campaign in kept_campaigns(seed):
        if rows := known_rows(campaign):
            lines += render(campaign, rows)
    return "\n".join(lines)


def kept_campaigns(seed: int) -> list[Campaign]:
    """Those with figures, by network and the number of samples."""
    found = []
    for folder in _RUNS.iterdir():
        begun, n, drawn = folder.name.rsplit("-", 2)
        name = next(place for place in _PLACES if begun.startswith(f"{place}-"))
        if int(drawn) == seed:
            found.append(Campaign(name, int(n), seed, begun.removeprefix(f"{name}-"), None))
    return sorted(found, key=lambda campaign: (list(_PLACES).index(campaign.name), -campaign.n))


def run(campaign: Campaign, masks: Sequence[PlantedMask], limit: float) -> Iterator[str]:
    """Measure those that have no figures yet; a line for each."""
    place = campaign.place
    ground = ground_of(
        place.network, place.radius, place.robust, campaign.samples("train"), place.levels
    )
    for mask in masks:
        kept = campaign.kept(mask)
        if not kept.has("row"):
            try:
                row = campaign.measure(mask, ground, limit)
            except _OverLimitError:
                row = {"mask": mask.name, "limit": limit, **kept.read("yardstick")}
            kept.write("row", row)
            yield _cells(row | kept.read("seconds"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=sorted(_PLACES), default="undefended")
    parser.add_argument("--only", nargs="*", default=[], choices=list(GALLERY), metavar="MASK")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--data", type=Path, help="the folder that holds cifar10-jpeg/test/…")
    parser.add_argument("--again", action="store_true", help="validate once more what is kept")
    parser.add_argument("--limit", type=float, default=600.0, help="processor seconds a mask")
    parser.add_argument("--minutes", type=float, help="stop after so many, to go on another time")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "planted_masks.md")
    arguments = parser.parse_args()
    campaign = Campaign(
        arguments.network, arguments.n, arguments.seed, arguments.suite, arguments.data
    )
    masks = campaign.masks(arguments.only)
    for mask in masks if arguments.again else ():
        campaign.kept(mask).forget_validation()
    if arguments.minutes is not None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 60 * arguments.minutes)
    try:
        for line in run(campaign, masks, arguments.limit):
            print(line, flush=True)
    except KeyboardInterrupt:
        print("interrupted: the same command without --again goes on", flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(campaign.seed))


if __name__ == "__main__":
    main()
