"""What the tests for masked gradients measure on sound models and on masked ones.

    python benchmarks/diagnoses.py                       # digits: the zoo, controls and planted masks
    python benchmarks/diagnoses.py --data data           # and the zoo's models on cifar10-jpeg
    python benchmarks/diagnoses.py --tests continuity --only votes

This is where the tests' thresholds come from: a threshold lies between what sound models reach and
what masks do. Beside each value stands what it is held against, in bold where that says "masked".
What was measured is kept under ``build/diagnoses``, so that a campaign that was interrupted goes on;
``--again`` measures the chosen ones anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peers import machine
from torch import nn

from robench.datasets import Dataset, load_dataset
from robench.doctor.subject import Subject
from robench.models import RobenchModel, list_cards, load_model, wrap_module
from robench.records import Diagnosis
from robench.text import file_name
from robench.threat_models import ThreatModel
from robench.validity.catalogue import DIAGNOSES, MOST

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent / "tests" / "support"))

from mask_gallery import GALLERY, Ground, ground_of  # noqa: E402

_KEPT = _HERE.parent / "build" / "diagnoses"
_DIGITS, _CIFAR = "digits/Linf-0.2/", "cifar10-jpeg/Linf-8_255/"
_COSTLY = "digits/Linf-0.2/pgd-at"


@dataclass(frozen=True)
class Case:
    """A model, and under what it is tested."""

    group: str
    name: str
    threat: ThreatModel
    data: Dataset

    def model(self) -> RobenchModel:
        """Made anew: some change while they are asked."""
        if self.group in ("controls", "planted masks"):
            module = GALLERY[self.name].build(_ground())
            return wrap_module(module, num_classes=10, input={"channels": 1}, share=True)
        return load_model((_DIGITS if self.group == "digits zoo" else _CIFAR) + self.name)

    def subject(self) -> Subject:
        """The first correctly classified samples."""
        rows = range(min(4 * MOST, len(self.data)))
        subject = Subject(
            self.model(), self.data.batch(rows), self.data.labels[rows.start : rows.stop]
        )
        return subject.at(subject.correct).at(slice(MOST))


@cache
def _ground() -> Ground:
    return ground_of(_DIGITS + "standard", 0.2, _DIGITS + "pgd-at")


def cases(data: Path | None) -> Iterator[Case]:
    """Sound models first."""
    digits, threat = load_dataset("digits"), ThreatModel.parse("Linf-0.2")
    cards = [located.card for located in list_cards()]
    for name in sorted(card.name for card in cards if card.id.startswith(_DIGITS)):
        yield Case("digits zoo", name, threat, digits)
    if data is not None:
        images = load_dataset("cifar10-jpeg", root=data)
        for name in sorted(card.name for card in cards if card.id.startswith(_CIFAR)):
            yield Case("cifar10-jpeg zoo", name, ThreatModel.parse("Linf-8/255"), images)
    for group, sound in (("controls", True), ("planted masks", False)):
        for mask in GALLERY.values():
            if mask.sound is sound:
                yield Case(group, mask.name, threat, digits)


def measure(case: Case, test: str, seed: int) -> list[dict[str, Any]]:
    """What a test says, one thing or several, how many inputs it passed through the network, and how
    long it took."""
    subject = case.subject()
    passed = 0

    def count(_: nn.Module, given: Any) -> None:
        nonlocal passed
        passed += len(given[0])

    handle = subject.model.network.register_forward_pre_hook(count)
    started = time.perf_counter()
    try:
        said = DIAGNOSES[test](subject, case.threat, seed)
        several = [said] if isinstance(said, Diagnosis) else said
        found = [item.model_dump(mode="json") for item in several]
    except Exception as error:  # what is planted may raise anything
        evidence = f"{type(error).__name__}: {error}"
        found = [{"test": test, "outcome": "undefined", "evidence": evidence}]
    finally:
        handle.remove()
    cost = {"forwards": passed, "seconds": time.perf_counter() - started}
    return [item | cost for item in found]


def kept(case: Case, test: str, seed: int, again: bool) -> list[dict[str, Any]]:
    """The same, measured once."""
    file = _KEPT / str(seed) / test / f"{file_name(f'{case.group}-{case.name}')}.json"
    if again or not file.exists():
        torch.manual_seed(seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(measure(case, test, seed)))
    found = json.loads(file.read_text())
    return found if isinstance(found, list) else [{"test": test, **found}]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    value, threshold = found.get("value"), found.get("threshold")
    if value is None:
        told = {"masked": "none to follow", "undefined": "undefined"}[found["outcome"]]
    else:
        told = f"{value:.3g} ({threshold:.3g})"
    return f"**{told}**" if found["outcome"] == "masked" else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", nargs="+", default=list(DIAGNOSES), help="of these tests")
    parser.add_argument("--only", nargs="+", default=[], help="models of these names")
    parser.add_argument("--data", type=Path, help="the folder that holds cifar10-jpeg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure anew")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = [case for case in cases(options.data) if not options.only or case.name in options.only]
    table: dict[str, dict[int, dict[str, Any]]] = {}
    costs: dict[str, list[dict[str, Any]]] = {}
    for test in options.tests:
        for place, case in enumerate(chosen):
            several = kept(case, test, options.seed, options.again)
            costs.setdefault(test, []).append(several[0])
            for found in several:
                name = found["test"]
                table.setdefault(name, {})[place] = found
                print(f"{name:20}{case.group:20}{case.name:22}{_cell(found)}", flush=True)
    lines = ["# Tests for masked gradients", "", *machine("cpu")]
    lines += [
        f"Seed {options.seed}, at most {MOST} correctly classified samples; ε = 0.2 for digits, 8/255 "
        "for cifar10-jpeg. Each value with what it is held against; bold: masked.",
        "",
        _row(["", "model", *table]),
        _row(["---"] * (2 + len(table))),
    ]
    for place, case in enumerate(chosen):
        cells = [_cell(column.get(place)) for column in table.values()]
        lines.append(_row([case.group, case.name, *cells]))
    lines += ["", _row(["test", "forwards a sample", "seconds on digits models (median)"])]
    lines.append(_row(["---"] * 3))
    digits = [place for place, case in enumerate(chosen) if case.group == "digits zoo"]
    for test in options.tests:
        rows = [costs[test][place] for place in digits]
        if rows:
            forwards = max(row["forwards"] for row in rows) / min(DIAGNOSES[test].samples, MOST)
            seconds = sorted(row["seconds"] for row in rows)[len(rows) // 2]
            lines.append(_row([test, f"{forwards:.0f}", f"{seconds:.1f}"]))
    lines += [
        "",
        f"For comparison: `peers.md` has aa-standard's passes on {_COSTLY}.",
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
