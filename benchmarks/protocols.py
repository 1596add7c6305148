"""``fast`` and ``strong`` beside ``aa-standard``: time, accuracy, and who misses what.

    python benchmarks/protocols.py                                   # every digits model, both norms
    python benchmarks/protocols.py --models digits/Linf-0.2/pgd-at --norms Linf --peer
    python benchmarks/protocols.py --logits --norms Linf             # scaled and shifted logits

Protocols take turns on each model, so that a slow minute of the machine hits them all; every run is
a process of its own (``peer_workers.py``). Runs are kept under ``build/protocols``: the campaign may
be run in pieces, and the page shows all that is there. ``--again`` makes them anew.

A sample that aa-standard breaks and strong does not is an exception, and is named.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import PROTOCOL, Table, machine, measure

from robench.models import list_cards

_HERE = Path(__file__).resolve().parent
_RUNS = _HERE.parent / "build" / "protocols"
_EPS = {"Linf": {"digits": "0.2"}, "L2": {"digits": "0.5"}}
_OWN_EPS = {"Linf": "8/255", "L2": "0.5"}
_REFERENCE, _PEER = "aa-standard", "pyautoattack"
_SUITES = (_REFERENCE, "fast", "strong")
_AS_THEY_ARE = "as they are"
_FORMS: dict[str, tuple[float, float]] = {
    _AS_THEY_ARE: (1.0, 0.0),
    "× 10³": (1e3, 0.0),
    "× 10⁶": (1e6, 0.0),
    "+ 10⁶": (1.0, 1e6),
}


@dataclass(frozen=True)
class Subject:
    """A model under a threat model, on the first n samples."""

    model: str
    norm: str
    n: int

    @property
    def eps(self) -> str:
        """As people write it."""
        return _EPS[self.norm].get(self.model.partition("/")[0], _OWN_EPS[self.norm])

    @property
    def file(self) -> Path:
        """Where its runs are kept."""
        return _RUNS / f"{self.model.replace('/', '_')}-{self.norm}-{self.n}.json"

    def kept(self) -> dict[str, list[dict[str, Any]]]:
        """Runs by protocol, or by form of the logits."""
        if not self.file.exists():
            return {}
        runs: dict[str, list[dict[str, Any]]] = json.loads(self.file.read_text())["runs"]
        return runs

    def keep(self, runs: dict[str, list[dict[str, Any]]]) -> None:
        """Runs so far."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({**vars(self), "runs": runs}))

    def run(
        self, protocol: str, seed: int, device: str, form: str = _AS_THEY_ARE
    ) -> dict[str, Any]:
        """One measurement."""
        task = _REFERENCE if protocol == _PEER else protocol
        table = Table(task, (), self.model, self.norm, self.eps, self.n)
        peer = _PEER if protocol == _PEER else "robench"
        print(f"{table.title}, seed {seed}, logits {form}", flush=True)
        logits = None if form == _AS_THEY_ARE else _FORMS[form]
        return measure(table, peer, seed, device, _HERE.parent / "build" / "peers", logits)


def time_protocols(
    subject: Subject, protocols: Sequence[str], repeats: int, device: str, again: bool
) -> None:
    """As many runs of each protocol, in turns; what is kept already is not run."""
    runs = {} if again else subject.kept()
    for repeat in range(repeats):
        for protocol in protocols:
            if len(runs.setdefault(protocol, [])) <= repeat:
                runs[protocol].append(subject.run(protocol, repeat, device))
                subject.keep(runs)


def vary_logits(subject: Subject, device: str, again: bool) -> None:
    """``strong`` on logits that are multiplied, or shifted."""
    runs = subject.kept()
    for form in _FORMS:
        name = _run_of(form)
        if again or name not in runs:
            runs[name] = [subject.run("strong", 0, device, form)]
            subject.keep(runs)


def everything_kept() -> list[tuple[Subject, dict[str, list[dict[str, Any]]]]]:
    """All subjects with their runs, by name."""
    found = []
    for file in sorted(_RUNS.glob("*.json")):
        content = json.loads(file.read_text())
        found.append((Subject(content["model"], content["norm"], content["n"]), content["runs"]))
    return sorted(found, key=lambda item: (item[0].n, item[0].norm, item[0].model))


def render_protocols(kept: Sequence[tuple[Subject, dict[str, list[dict[str, Any]]]]]) -> list[str]:
    """A row for each model, norm and protocol, then the exceptions."""
    columns = ["model", "norm, ε", "n", "protocol", "robust accuracy %", "passes, thousands"]
    columns += ["processor s", "s", "aa-standard ÷ this, passes", "processors", "wall", "audit"]
    lines, exceptions = [_row(columns), _row(["---"] * len(columns))], list[str]()
    for subject, runs in kept:
        if not runs.get(_REFERENCE):
            continue
        for protocol in (*_SUITES, _PEER):
            if mine := runs.get(protocol):
                where = [subject.model, f"{subject.norm} {subject.eps}", str(subject.n), protocol]
                lines.append(_row([*where, *_cells(mine, runs[_REFERENCE])]))
        for protocol in ("fast", "strong"):
            exceptions += _exceptions(subject, runs, protocol)
    lines += ["", "Samples that aa-standard breaks and another protocol does not, by seed:", ""]
    return [*lines, *(exceptions or ["- none"]), ""]


def render_passes(kept: Sequence[tuple[Subject, dict[str, list[dict[str, Any]]]]]) -> list[str]:
    """Where the passes of each protocol's first run went: a row for each, attack by attack."""
    head = ["model", "norm, ε", "n", "protocol", "attacks"]
    rows = [
        _row([s.model, f"{s.norm} {s.eps}", str(s.n), protocol, _by_attack(runs[protocol][0])])
        for s, runs in kept
        for protocol in _SUITES
        if runs.get(protocol)
    ]
    title = [
        "## Passes by attack",
        "",
        "In the order that they ran: samples → those left, thousands of passes, forward and backward alike. "
        "An attack that is there twice ran on the audit, and then on the other survivors.",
        "",
    ]
    return [*title, _row(head), _row(["---"] * len(head)), *rows, ""] if rows else []


def _by_attack(run: dict[str, Any]) -> str:
    return ", ".join(
        f"{stage['name']} {stage['attempted']} → {stage['attempted'] - stage['broken']}: "
        f"{stage['passes'] / 1000:.1f}"
        for stage in run["stages"]
    )


def render_logits(kept: Sequence[tuple[Subject, dict[str, list[dict[str, Any]]]]]) -> list[str]:
    """Robust accuracy under ``strong``, in percent, for each form of the logits."""
    rows = [
        _row([s.model, f"{s.norm} {s.eps}", str(s.n), *(_form(runs, form) for form in _FORMS)])
        for s, runs in kept
        if sum(_run_of(form) in runs for form in _FORMS) > 1
    ]
    if not rows:
        return []
    head = ["model", "norm, ε", "n", *_FORMS]
    title = [
        "## Logits multiplied and shifted",
        "",
        "Robust accuracy under `strong`, percent, how many samples are broken on one side only beside the logits "
        "as they are, and what the doctor says of these logits alone.",
        "",
    ]
    return [*title, _row(head), _row(["---"] * len(head)), *rows, ""]


def _run_of(form: str) -> str:
    """What the runs of a form are kept under."""
    return "strong" if form == _AS_THEY_ARE else f"logits {form}"


def _form(runs: dict[str, list[dict[str, Any]]], form: str) -> str:
    """Robust accuracy, who fares otherwise than on the model's own logits, and the doctor's doubts."""
    if (name := _run_of(form)) not in runs:
        return "–"
    run, plain = runs[name][0], runs[_run_of(_AS_THEY_ARE)][0]
    others = len(set(plain["broken"]) ^ set(run["broken"]))
    doubts = sorted(set(run.get("flags", [])) - set(plain.get("flags", [])))
    return ", ".join([f"{run['robust_acc']:.1f} ({others})", *doubts])


def _cells(runs: list[dict[str, Any]], reference: list[dict[str, Any]]) -> list[str]:
    """Median accuracy and times, how many times as fast as the reference, and the audits' answer."""
    spent = [(_passes(runs), _passes(reference)) if "forwards" in runs[0] else None]
    spent += [(_median(runs, of), _median(reference, of)) for of in _TIMES]
    cells = [f"{_median(runs, 'robust_acc'):.1f}"]
    cells += ["" if pair is None else f"{pair[0]:.1f}" for pair in spent]
    cells += ["" if pair is None else f"{pair[1] / pair[0]:.2f}×" for pair in spent]
    return [*cells, _audits(runs)]


def _passes(runs: list[dict[str, Any]]) -> float:
    """Thousands, forward and backward alike; peers do not count theirs."""
    return float(statistics.median(run["forwards"] + run["backwards"] for run in runs)) / 1000


def _audits(runs: list[dict[str, Any]]) -> str:
    """Of audited protocols: how far the others were sent, and the largest bound on what was missed."""
    audits = [run["audit"] for run in runs if run.get("audit")]
    if not audits:
        return ""
    reached = [audit["escalated_to"] for audit in audits if audit["escalated"]]
    bound = max(100 * (audit["missed_share_upper"] or 0) for audit in audits)
    return ", ".join([*(f"escalated to {stage}" for stage in reached), f"≤ {bound:.1f} %"])


_TIMES = ("processor_seconds", "seconds")


def _median(runs: list[dict[str, Any]], of: str) -> float:
    return float(statistics.median(run[of] for run in runs))


def _exceptions(
    subject: Subject, runs: dict[str, list[dict[str, Any]]], protocol: str
) -> list[str]:
    """What the protocol misses of the reference's finds, and how many it adds, seed by seed."""
    lines = []
    pairs = zip(runs[_REFERENCE], runs.get(protocol, []), strict=False)
    for seed, (standard, other) in enumerate(pairs):
        missed = sorted(set(standard["broken"]) - set(other["broken"]))
        more = len(set(other["broken"]) - set(standard["broken"]))
        if missed:
            where = f"{subject.model}, {subject.norm}, n = {subject.n}, seed {seed}"
            lines.append(
                f"- {protocol} on {where}: {', '.join(missed)} ({more} only by {protocol})"
            )
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_LEGEND = (
    "Medians over the seeds. Passes are forward and backward ones. Processor seconds are what the process took, seconds are the clock's, in "
    "which others' work on the machine is too. Of audited protocols: the stage that the survivors outside "
    "the audit were sent through to, where it found any, and the 95 % bound on the share of survivors "
    "that were missed."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", help="ids; default: all of digits")
    parser.add_argument("--norms", nargs="*", default=["Linf", "L2"], choices=sorted(_EPS))
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--suites", nargs="*", default=list(_SUITES), choices=_SUITES)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peer", action="store_true", help="pyautoattack's standard version too")
    parser.add_argument("--logits", action="store_true", help="scale and shift logits instead")
    parser.add_argument("--again", action="store_true", help="run what is kept once more")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "protocols.md")
    arguments = parser.parse_args()
    models = arguments.models or [located.card.id for located in list_cards("digits")]
    protocols = [*arguments.suites, *([_PEER] if arguments.peer else [])]
    for model in models:
        for norm in arguments.norms:
            subject = Subject(model, norm, arguments.n)
            if arguments.logits:
                vary_logits(subject, arguments.device, arguments.again)
            else:
                time_protocols(
                    subject, protocols, arguments.repeats, arguments.device, arguments.again
                )
            kept = everything_kept()
            head = [
                "# Protocols side by side",
                "",
                *machine(arguments.device, PROTOCOL),
                _LEGEND,
                "",
            ]
            page = [*head, *render_protocols(kept), *render_passes(kept), *render_logits(kept)]
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text("\n".join(page))


if __name__ == "__main__":
    main()
