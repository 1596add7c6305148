"""The attacks of the protocols one by one: who is broken by which alone, for how near a class, at what cost.

    python benchmarks/protocol_members.py                             # every digits model, L2, n = 200
    python benchmarks/protocol_members.py --models digits/Linf-0.2/trades --norm Linf --n 100

A stage's draws are keyed by its name and the sample, so what it finds alone is what it finds in a cascade.
Results are kept under ``build/protocol_members``: the page shows all that is there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import machine
from protocols import Subject

from robench.attacks.suites import load_suite
from robench.datasets import load_dataset
from robench.evaluation.cascade import Cascade
from robench.evaluation.cascade_state import StageRun
from robench.evaluation.prepared_model import PreparedModel, Settings, prepare_model
from robench.models import list_cards, load_model
from robench.records import AttackSpec
from robench.threat_models import ThreatModel

_HERE = Path(__file__).resolve().parent
_RUNS = _HERE.parent / "build" / "protocol_members"
_FAR = 9
"""Classes that targeted attacks aim at here, nearest boundaries first"""


@dataclass(frozen=True)
class Member:
    """What an attack found, of the samples that are classified correctly."""

    name: str
    ids: list[str]
    broken: list[str]
    places: list[int]
    """Of an attack with targets: how many finds it made for the nearest class, the next, …"""
    passes: float
    """A sample"""


def members(threat_model: ThreatModel) -> list[AttackSpec]:
    """The stages of ``strong``, aiming at all classes."""
    (spec,) = load_suite("strong").for_norm(threat_model.norm)
    return [
        stage.model_copy(update={"params": {**stage.params, "targets": _FAR}})
        if "targets" in stage.params
        else stage
        for stage in spec.stages
        if stage.within is None
    ]


def run(stage: AttackSpec, prepared: PreparedModel) -> Member:
    """One attack on all samples, whatever the others do."""
    rows = torch.arange(len(prepared))
    cascade = Cascade(AttackSpec(name="alone", stages=(stage,)), prepared)
    found = cascade.search_of(StageRun(0, "all"), rows, prepared.load(rows)).run()
    ids = [prepared.dataset.sample_ids[row] for row in prepared.rows.tolist()]
    places = torch.bincount(found.settled[found.broken], minlength=found.searches).tolist()
    return Member(
        stage.name,
        ids,
        [ids[row] for row in found.broken.nonzero().squeeze(1).tolist()],
        places if "targets" in stage.params else [],
        float((found.forwards + found.backwards).double().mean()),
    )


def kept(subject: Subject) -> Path:
    """Where a model's results are."""
    return _RUNS / f"{subject.model.replace('/', '_')}-{subject.norm}-{subject.n}.pt"


def measure(subject: Subject) -> None:
    """All members that are not kept yet."""
    done: dict[str, dict[str, Any]] = torch.load(kept(subject)) if kept(subject).exists() else {}
    threat_model = ThreatModel.of(subject.norm, subject.eps)
    stages = [stage for stage in members(threat_model) if stage.name not in done]
    if not stages:
        return
    data = load_dataset(subject.model.partition("/")[0]).subset(subject.n)
    whole = load_suite("strong").for_norm(threat_model.norm)
    prepared = prepare_model(
        load_model(subject.model), data, threat_model, Settings(workers=1), whole
    )
    for stage in stages:
        done[stage.name] = vars(run(stage, prepared))
        print(f"{subject.model}, {stage.name}: {len(done[stage.name]['broken'])}", flush=True)
        kept(subject).parent.mkdir(parents=True, exist_ok=True)
        torch.save(done, kept(subject))


def render(subject: Subject) -> list[str]:
    """A row for each attack that is kept."""
    found = {name: Member(**fields) for name, fields in torch.load(kept(subject)).items()}
    rows = []
    for name, member in found.items():
        others = {i for other in found.values() if other.name != name for i in other.broken}
        alone = sorted(set(member.broken) - others)
        cells = [subject.model, f"{subject.norm} {subject.eps}", f"{subject.n}", name]
        cells += [f"{len(member.broken)} of {len(member.ids)}", ", ".join(alone)]
        cells += [", ".join(map(str, member.places)), f"{member.passes:.0f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", help="ids; default: all of digits")
    parser.add_argument("--norm", default="L2", choices=["Linf", "L2"])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "protocol_members.md")
    arguments = parser.parse_args()
    models = arguments.models or [located.card.id for located in list_cards("digits")]
    head = [
        "model",
        "norm, ε",
        "n",
        "attack",
        "broken",
        "by it alone",
        "finds by place of the class",
    ]
    lines = ["# The attacks of the protocols, one by one", "", *machine("cpu")]
    lines += [
        "Of each attack of `strong` on all samples that are classified correctly. The first place is that of "
        "the class whose linearised boundary is nearest; targeted attacks aim at nine classes here.",
        "",
        "| " + " | ".join([*head, "passes a sample"]) + " |",
        "|" + " --- |" * (len(head) + 1),
    ]
    for model in models:
        subject = Subject(model, arguments.norm, arguments.n)
        measure(subject)
        lines += render(subject)
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
