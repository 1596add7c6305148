r"""What `robench validate` costs beside the suite that it judges, and whom it suspects without reason.

    python benchmarks/validate_cost.py --only pgd-at --n 500       # what it costs beside aa-standard
    python benchmarks/validate_cost.py --n 40 --only aerp agkd-bml ancra mart pgd-at standard trades \
        vit-pgd-at --out benchmarks/results/false_alarms.md        # whom it suspects
    python benchmarks/validate_cost.py --suite benchmarks/apgd.toml --n 16 --data data \
        --only resnet10-aerp resnet10-agkd-bml resnet10-pgd-at resnet10-standard resnet10-trades \
        --out benchmarks/results/false_alarms_cifar.md             # and there
    python benchmarks/validate_cost.py --minutes 9                 # a piece; the next call goes on

Of the zoo's models and of controls of other kinds, all sound: passes and processor seconds of
`aa-standard`, of the diagnoses, and of the countermeasures; and what is said of them. What the records'
own flags and contradictions say is free; the tests on a few samples are the diagnoses. What was
measured is kept under ``build/validate_cost``; ``--again`` measures the chosen models anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diagnoses import Case, cases
from peers import machine
from torch import nn

from robench.api import prepare
from robench.records import Validation
from robench.reporting.model_results import collect
from robench.request import Request
from robench.results import Store, StoredRecord
from robench.text import file_name
from robench.validity.catalogue import diagnose
from robench.validity.validation import subject_of, validate

_HERE = Path(__file__).resolve().parent
_KEPT = _HERE.parent / "build" / "validate_cost"
_SUITE = "aa-standard"


class _Passes:
    """Inputs that go through a network, forwards and backwards."""

    def __init__(self, network: nn.Module) -> None:
        self.forwards = self.backwards = 0
        network.register_forward_pre_hook(self._forward)
        network.register_forward_hook(self._output)

    def _forward(self, _: nn.Module, given: Any) -> None:
        self.forwards += len(given[0])

    def _output(self, _: nn.Module, __: Any, returned: Any) -> None:
        logits = returned[0] if isinstance(returned, tuple) else returned
        if isinstance(logits, torch.Tensor) and logits.requires_grad:
            logits.register_hook(self._backward)  # type: ignore[no-untyped-call]

    def _backward(self, gradient: torch.Tensor) -> None:
        self.backwards += len(gradient)

    @property
    def both(self) -> int:
        return self.forwards + self.backwards


@dataclass(frozen=True)
class Measured:
    """A sound model's numbers."""

    group: str
    model: str
    n: int
    verdict: str
    reasons: list[str]
    masked: dict[str, str]
    robust_acc: float
    best_known_acc: float
    suite_passes: int
    suite_seconds: float
    diagnosis_passes: int
    diagnosis_seconds: float
    trial_passes: int
    validate_seconds: float


def measure(case: Case, folder: Path, suite: str, n: int, seed: int) -> Measured:
    """The suite, the tests by themselves, and all that validation adds to the suite."""
    model, data = case.model(), case.data.subset(n)
    request = Request(
        models=(model.network if case.group == "controls" else model.summary.id,),
        name=case.name,
        dataset=data,
        norm=case.threat.norm,
        eps=case.threat.written,
        n=n,
        suite=suite,
        seed=seed,
        results=folder / "results",
        workers=1,
    )
    prepared = prepare(request)
    suite_seconds = _timed(folder / "suite.json", prepared.run)
    records = prepared.run()  # from the folder
    passes = _Passes(model.network)
    (result,) = collect(records)
    subject = subject_of(model, data, result, prepared.settings)
    started = time.process_time()
    diagnose(subject, case.threat, seed)
    diagnosed = time.process_time()
    (found,) = validate(prepared)
    ended = time.process_time()
    return Measured(
        group=case.group,
        model=case.name,
        n=n,
        verdict=found.verdict,
        reasons=list(found.reasons),
        masked={item.test: item.evidence for item in found.masked},
        robust_acc=found.robust_acc,
        best_known_acc=found.best_known_acc,
        suite_passes=sum(map(_cost, records)),
        suite_seconds=suite_seconds,
        diagnosis_passes=passes.both,
        diagnosis_seconds=diagnosed - started,
        trial_passes=_trial_passes(found, Store(folder / "results")),
        validate_seconds=ended - diagnosed,
    )


def _timed(file: Path, run: Callable[[], object]) -> float:
    """Processor seconds of a run that is made once."""
    if not file.exists():
        started = time.process_time()
        run()
        file.write_text(json.dumps(time.process_time() - started))
    return float(json.loads(file.read_text()))


def _cost(stored: StoredRecord) -> int:
    return stored.record.cost.forwards + stored.record.cost.backwards


def _trial_passes(found: Validation, store: Store) -> int:
    return sum(_cost(store.read(key)) for key in {t.key for t in found.trials if t.key})


def kept(case: Case, suite: str, n: int, seed: int, again: bool) -> Measured:
    """The same, measured once."""
    folder = _KEPT / f"{Path(suite).stem}-{n}-{seed}" / file_name(f"{case.group}-{case.name}")
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    file = folder / "measured.json"
    if not file.exists():
        torch.manual_seed(seed)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(measure(case, folder, suite, n, seed))))
    return Measured(**json.loads(file.read_text()))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(part: float, whole: float) -> str:
    return f"{part:,.0f} ({100 * part / whole:.1f} %)"


def render(rows: Sequence[Measured], suite: str, seed: int) -> Iterator[str]:
    """What it costs beside AutoAttack, who is suspected, and what that comes to."""
    yield from ("# The cost of validation, and its false alarms", "", *machine("cpu"))
    yield (
        f"n = {rows[0].n}, seed {seed}, one worker; ε = 0.2 for digits, 8/255 for cifar10-jpeg. No "
        "model was made to mislead attacks; ANCRA decides by an argmax inside."
    )
    if suite == _SUITE:
        yield from _costs(rows)
    header = (Path(suite).stem, "best known", "verdict", "said to be masked by", "")
    yield from ("", _row(["", "model", *header]), _row(["---"] * 7))
    for row in rows:
        accuracies = (f"{row.robust_acc:.1f}", f"{row.best_known_acc:.1f}")
        cells = [row.group, row.model, *accuracies, row.verdict, ", ".join(row.masked) or "–"]
        yield _row([*cells, "; ".join([*row.reasons, *row.masked.values()]) or "–"])
    # A find is an input that the model itself has wrong: who is lowered has a number too high.
    told = {
        "raise an alarm": [r.model for r in rows if r.masked or r.verdict == "unreliable"],
        "are lowered, by finds that the model itself has wrong": [
            r.model for r in rows if r.verdict == "lowered"
        ],
    }
    for what, names in told.items():
        named = f": {', '.join(names)}." if names else "."
        yield from ("", f"{len(names)} of {len(rows)} {what}{named}")


def _costs(rows: Sequence[Measured]) -> Iterator[str]:
    yield from (
        "",
        f"Passes are forward and backward ones; in brackets percent of {_SUITE}'s. The tests",
    )
    yield from ("look at 64 samples at most, however many a suite has.", "")
    header = (f"{_SUITE}: passes", "diagnoses", "countermeasures")
    yield _row(["", "model", *header, f"{_SUITE}: CPU s", "diagnoses", "all of validate"])
    yield _row(["---"] * 8)
    for row in rows:
        cells = [row.group, row.model, f"{row.suite_passes:,}"]
        cells += [_share(p, row.suite_passes) for p in (row.diagnosis_passes, row.trial_passes)]
        cells += [f"{row.suite_seconds:.0f}"]
        seconds = (row.diagnosis_seconds, row.validate_seconds)
        yield _row([*cells, *(_share(s, row.suite_seconds) for s in seconds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--suite", default=_SUITE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="the folder that holds cifar10-jpeg")
    parser.add_argument("--only", nargs="+", default=[], help="models of these names")
    parser.add_argument("--again", action="store_true", help="measure anew")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model later")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "validate_cost.md")
    options = parser.parse_args()
    started, rows = time.monotonic(), []
    for case in cases(options.data):
        if case.group == "planted masks" or (options.only and case.name not in options.only):
            continue
        if time.monotonic() - started > 60 * options.minutes:
            print("more is left: the same command goes on")
            break
        rows.append(kept(case, options.suite, options.n, options.seed, options.again))
        print(rows[-1], flush=True)
    options.out.write_text("\n".join(render(rows, options.suite, options.seed)) + "\n")


if __name__ == "__main__":
    main()
