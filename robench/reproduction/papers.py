"""The tables of the papers that recipes follow, beside what robench measured; needs no torch.

Their figures are data, in ``papers.toml``. Ours are those of a results folder, and of a model that it
lacks those of its card. Nothing is run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from robench.models.zoo import LocatedCard, list_cards
from robench.records.base import Frozen
from robench.registry import unknown_name
from robench.reporting.leaderboard import attack_column
from robench.reporting.model_results import ModelResult, collect
from robench.reproduction.findings import Finding
from robench.results import Store
from robench.statistics import wilson
from robench.threat_models import ThreatModel


class PaperRow(Frozen):
    """One line of a paper's table; what is None is not known here."""

    label: str
    dataset: str
    """As robench names it"""
    threat_model: ThreatModel | None = None
    architecture: str | None = None
    """As robench names it, with the arguments that it needs"""
    arguments: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, float] = Field(default_factory=dict)
    """In percent, by the columns of a leaderboard"""
    asked: tuple[str, ...] = ()
    """Columns that the paper has, without their figures"""

    @property
    def network(self) -> str:
        """The architecture with its arguments."""
        return "" if self.architecture is None else _network(self.architecture, self.arguments)


class Paper(Frozen):
    """A paper's table."""

    paper: str
    link: str
    source: str
    """Where the figures are from"""
    epochs: int | None = None
    attack: str
    """What its attacks show, and what they do not"""
    rows: tuple[PaperRow, ...]

    @property
    def columns(self) -> list[str]:
        """The columns of its table."""
        return list(dict.fromkeys(c for row in self.rows for c in (*row.figures, *row.asked)))


@cache
def _papers() -> dict[str, Paper]:
    text = (files("robench.reproduction") / "papers.toml").read_text(encoding="utf-8")
    return {name: Paper.model_validate(table) for name, table in tomllib.loads(text).items()}


PAPERS = ("ancra", "agkd-bml", "aerp")
"""The papers, by the names of their recipes"""


@dataclass(frozen=True)
class Measured:
    """What robench knows of one model of a paper's recipe.

    Attributes:
        card: the model's.
        n: number of samples; None: not known.
        figures: in percent, by the columns of a leaderboard.
        source: where they are from.
        parameters: number of weights; None: not known without building the network.
    """

    card: LocatedCard
    n: int | None
    figures: Mapping[str, float]
    source: str
    parameters: int | None = None

    @property
    def network(self) -> str:
        """The architecture with its arguments."""
        spec = self.card.card.architecture
        size = "" if self.parameters is None else f", {self.parameters:,} weights"
        return _network(spec.name, spec.arguments) + size

    def differences(self, row: PaperRow) -> Iterator[str]:
        """Why its figures are not those of a line of the paper: another data set, ball or network."""
        card = self.card.card
        if card.dataset != row.dataset:
            yield f"data: {card.dataset} in place of {row.dataset}"
        if card.threat_model != row.threat_model:
            theirs = "an unknown ball" if row.threat_model is None else str(row.threat_model)
            yield f"ball: {card.threat_model} in place of {theirs}"
        same = (card.architecture.name, dict(card.architecture.arguments))
        if same != (row.architecture, row.arguments):
            yield f"network: {self.network} in place of {row.network or 'an unknown one'}"


@dataclass(frozen=True)
class PaperTable:
    """A paper beside what was measured of its recipe's models."""

    name: str
    paper: Paper
    measured: tuple[Measured, ...]

    def findings(self) -> Iterator[Finding]:
        """One for each model and column of the paper; where data, ball or network are not the paper's,
        nobody can tell, and it says why."""
        for model in self.measured:
            for row in self.paper.rows:
                why = "; ".join(model.differences(row))
                for column in (*row.figures, *row.asked):
                    yield _finding(model, row, column, why)

    def reasons(self, model: Measured) -> Iterator[str]:
        """Why a model's figures are not the paper's."""
        yield from dict.fromkeys(d for row in self.paper.rows[:1] for d in model.differences(row))
        epochs = model.card.card.provenance.epochs
        if epochs is not None and self.paper.epochs not in (None, epochs):
            yield f"training: {epochs} epochs in place of {self.paper.epochs}"
        if model.n is not None:
            robust = model.figures.get("autoattack_acc", model.figures.get("robust_acc", 50.0))
            share = wilson(round(robust / 100 * model.n), model.n).scaled(100)
            yield (
                f"samples: {model.n}, so that {share.estimate:.1f} % stands for anything from "
                f"{share.low:.1f} to {share.high:.1f} %"
            )
        lacking = [column for column in self.paper.columns if column not in model.figures]
        if lacking:
            yield f"attack: not measured here: {', '.join(lacking)}"


def reproduce_paper(name: str, folder: str | Path = "results") -> PaperTable:
    """A paper's table beside the figures of the zoo's models that its recipe made.

    Args:
        name: of the recipe, one of :data:`PAPERS`.
        folder: records that go before the cards' figures, where it is there.

    Raises:
        UnknownNameError: there is no such paper.
    """
    if name not in PAPERS:
        raise unknown_name("paper", name, list(PAPERS))
    there = Store(folder).records() if Path(folder).is_dir() else ()
    results = collect(there)
    cards = [located for located in list_cards(problems=[]) if located.card.defense == name]
    found = tuple(_measured(located, results, folder) for located in cards)
    return PaperTable(name, _papers()[name], found)


def _measured(located: LocatedCard, results: list[ModelResult], folder: str | Path) -> Measured:
    own = [
        r
        for r in results
        if r.model.id == located.id and r.threat_model == located.card.threat_model
    ]
    if own:
        result = max(own, key=lambda r: (r.n, -r.group.seed))
        figures = {"clean_acc": result.clean_acc.estimate}
        figures |= {attack_column(a): result.attack_acc(a).estimate for a in result.attacks}
        figures["robust_acc"] = result.robust_acc.estimate
        source = f"records in {folder}"
        return Measured(located, result.n, figures, source, result.model.parameters)
    table = located.card.provenance.measured
    n = table.get("n")
    return Measured(
        located,
        n if isinstance(n, int) else None,
        {
            k: float(v)
            for k, v in table.items()
            if k.endswith("_acc") and isinstance(v, (int, float))
        },
        f"its card: {table.get('autoattack_command', table.get('command', 'no command'))}",
    )


def _finding(model: Measured, row: PaperRow, column: str, why: str) -> Finding:
    claimed, measured, n = row.figures.get(column), model.figures.get(column), model.n
    finding = partial(
        Finding,
        model=model.card.id,
        under=f"{row.label}, {row.dataset}, {row.network or 'an unknown network'}",
        quantity=column,
        claimed=claimed,
        measured=measured,
    )
    if why or claimed is None or measured is None or not n:
        missing = "the paper's figure is not here" if claimed is None else "it was not measured"
        return finding(why=why or missing)
    share = wilson(round(measured / 100 * n), n).scaled(100)
    agrees = share.low <= claimed <= share.high
    return finding(low=share.low, high=share.high, verdict="agrees" if agrees else "differs")


def _network(name: str, arguments: Mapping[str, Any]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return f"{name} ({said})" if said else name
