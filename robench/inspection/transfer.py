"""Transfer: what was made for one model, judged on every other.

Each model is attacked as by ``robench run``, its adversarial inputs kept, and those of every other are
judged on it as ``robench judge`` judges inputs from elsewhere. What comes of them are records of the
judging model, which lower what is best known of it, and none of its own numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from pandas import DataFrame

from robench.attacks.suites import find_attack
from robench.datasets import Dataset
from robench.datasets.adversarial_files import MatchedInputs
from robench.devices import device_of, single_precision
from robench.errors import UnknownNameError, UsageError
from robench.evaluation.recognition import check_recognised
from robench.evaluation.runner import Listener, Silent
from robench.inspection.judging import Judge
from robench.models.ensemble import Mean, ensemble
from robench.models.wrapper import RobenchModel
from robench.preparation import Planned, Prepared, check_fit, prepare
from robench.records import AttackSpec, MadeFor, Suite
from robench.registry import unknown_name
from robench.reporting.model_results import collect
from robench.reporting.transfers import attacked, matrix_of, transfer_table
from robench.request import Request
from robench.results import Store, StoredRecord
from robench.threat_models import NORMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Transfer:
    """What models' adversarial inputs did to each other: their records, as a table and a figure.

    Numbers are in percent of all samples; intervals are Wilson's at 95 %.

    Args:
        records: of every model under its own attacks, and of every model with the others' inputs.
    """

    def __init__(self, records: Sequence[StoredRecord]) -> None:
        self.records = tuple(records)
        self.results = collect(records)
        """One for each model and ensemble"""

    def to_frame(self) -> DataFrame:
        """One row a pair, as :func:`robench.reporting.transfers.transfer_table`."""
        return transfer_table(self.results)

    def matrix(self, attack: str | None = None) -> DataFrame:
        """Robust accuracy: a row for each model (and ensemble) that inputs were made for, a column for
        each that judged them; on the diagonal the models' own.

        Args:
            attack: by which they were made; None: the only one.

        Raises:
            UnknownNameError: there is none of this name.
            UsageError: there are several.
        """
        return matrix_of(self.to_frame(), attack)

    def plot(self, attack: str | None = None, **options: Any) -> Figure:
        """The matrix as a figure; ``options`` and errors as of :func:`robench.plot`."""
        # matplotlib takes half a second.
        from robench.reporting.plots.one_figure import plot

        return plot("transfer", self.records, attack=attack, **options)

    def __repr__(self) -> str:
        frame = self.to_frame()
        each = [(name, matrix_of(frame, name)) for name in frame["attack"].unique()]
        return "\n\n".join(
            f"{name}\n{matrix.to_string(float_format='{:.1f}'.format)}" for name, matrix in each
        )


@dataclass(frozen=True)
class PreparedTransfer:
    """A checked request: models that judge each other's inputs, and what else these are made for."""

    targets: Prepared
    sources: Prepared
    """The same models, and the ensembles"""

    @property
    def jobs(self) -> int:
        """Number of records that the run will give."""
        others = len(self.targets.planned) - 1
        ensembles = replace(self.sources, planned=self.sources.planned[others + 1 :])
        return self.targets.jobs * (1 + others) + ensembles.jobs * (2 + others)

    @single_precision()
    def run(self, listener: Listener | None = None) -> Transfer:
        """Run and judge what is missing in the results folder.

        Raises:
            RobenchError: as :meth:`robench.preparation.Prepared.run`.
        """
        listener = listener or Silent()
        request = self.sources.request
        with ExitStack() as stack:
            folder = request.results or stack.enter_context(
                tempfile.TemporaryDirectory(prefix="robench-")
            )
            sources = replace(self.sources, request=replace(request, results=folder))
            made = sources.run(listener)
            judged = list(self._judged(Store(folder), made, listener))
        return Transfer([*made, *judged])

    def _judged(
        self, store: Store, made: Sequence[StoredRecord], listener: Listener
    ) -> Iterator[StoredRecord]:
        members = {
            item.model.summary.fingerprint: tuple(
                member.summary.fingerprint
                for member in item.model.network.members
                if isinstance(member, RobenchModel)
            )
            for item in self.sources.planned
            if isinstance(item.model.network, Mean)
        }
        for planned in self.targets.planned:
            home, model = device_of(planned.model), planned.model.summary
            judge = Judge(store, self.targets, planned, listener)
            for stored in made:
                record = stored.record
                if record.model.fingerprint == model.fingerprint:
                    continue
                made_for = MadeFor(
                    record=record.key,
                    model=record.model,
                    attack=record.attack,
                    members=members.get(record.model.fingerprint, ()),
                )
                yield judge.file(kept_inputs(store, stored, planned.dataset), made_for)
            planned.model.to(home)


@single_precision()
def prepare_transfer(
    request: Request, ensembles: Sequence[Sequence[str]] = (), mean: str = "logits"
) -> PreparedTransfer:
    """Check a request, load what it names, and build ensembles of its models. Writes nothing.

    Args:
        request: two models or more, one data set and threat model; its suite has the attacks by which
            inputs are made.
        ensembles: each names two or more of the models.
        mean: of the ensembles' logits or probabilities, :data:`robench.models.ensemble.MEANS`.

    Raises:
        UnknownNameError: an ensemble of a model that is not named, or of no such mean.
        UsageError: one model alone; models of several data sets or threat models; an attack that is
            not defined for theirs.
        RobenchError: as :func:`robench.preparation.prepare`.
    """
    if request.goal != "untargeted":
        raise UsageError(
            "inputs are judged by whether they are misclassified", hint="Leave out the goal"
        )
    prepared = prepare(replace(request, save_adversarial=True))
    _check_comparable(prepared)
    unlike: dict[str, Planned] = {}
    for item in prepared.planned:  # named twice, a model is one
        unlike.setdefault(item.model.summary.fingerprint, item)
    planned = list(unlike.values())
    if len(planned) < 2:
        raise UsageError(
            f"{planned[0].model.summary.name} alone has no other model that its inputs could break",
            hint="Name two models or more",
        )
    first, together = planned[0], []
    for names in ensembles:
        model = ensemble([_named(name, planned) for name in names], mean)
        item = first._replace(model=model)
        check_fit(model, item.dataset, prepared.device)
        if request.results is not None:
            check_recognised(model, item.dataset, Store(request.results), prepared.device)
        together.append(item)
    targets = replace(prepared, planned=planned)
    return PreparedTransfer(targets, replace(prepared, planned=[*planned, *together]))


def _check_comparable(prepared: Prepared) -> None:
    """Refuse models whose inputs are no inputs for each other."""
    threats = {item.threat.identity: str(item.threat) for item in prepared.planned}
    if len(threats) > 1:
        raise UsageError(
            f"inputs of one ball are judged in that ball, and these are several: "
            f"{', '.join(threats.values())}",
            hint="Choose one with --norm and --eps",
        )
    (threat,) = {item.threat.identity: item.threat for item in prepared.planned}.values()
    if threat.goal != "untargeted":
        raise UsageError(f"{threat} has no adversary", hint="Choose a suite of attacks")
    if not prepared.suite.for_norm(threat.family):
        raise UsageError(f"suite {prepared.suite.name!r} has no attack for {threat.family}")
    data = {item.dataset.spec().fingerprint: item for item in prepared.planned}
    if len(data) > 1:
        names = ", ".join(item.model.summary.name for item in data.values())
        raise UsageError(
            f"the models see the samples prepared in several ways: {names}",
            hint="Name models whose cards prepare images alike",
        )


def _named(name: str, planned: Sequence[Planned]) -> RobenchModel:
    """The model of an ensemble, among those that are named."""
    for item in planned:
        own = item.model.summary
        if name == own.name or f"/{own.id}".endswith(f"/{name}"):
            return item.model
    known = [item.model.summary.name for item in planned]
    raise unknown_name("model among those that are named", name, known)


def attack_suite(name: str) -> Suite:
    """One attack as a suite: an entry of the suites that come with robench, under each norm its own,
    or an attack with its default parameters.

    Raises:
        UnknownNameError: there is none under any norm; near misses are listed.
    """
    found: list[AttackSpec] = []
    problem: UnknownNameError | None = None
    for norm in NORMS:
        try:
            found.append(find_attack(name, norm).model_copy(update={"norms": (norm,)}))
        except UnknownNameError as error:
            problem = problem or error
    if problem is not None and not found:
        raise problem
    return Suite(name="transfer", attacks=tuple(found))


def kept_inputs(store: Store, stored: StoredRecord, dataset: Dataset) -> MatchedInputs:
    """The adversarial inputs that a record keeps, of those samples that were attacked: finds, and of
    survivors the nearest tries.

    Raises:
        StoreError: the record keeps none.
        UsageError: it is of other samples.
    """
    record, table = stored.record, stored.table
    if record.dataset.fingerprint != dataset.spec().fingerprint:
        raise UsageError(
            f"the inputs are of {record.dataset.name}, n = {record.n}, prepared in another way",
            where=record.model.id,
        )
    rows = attacked(table).to_numpy().nonzero()[0]
    inputs = torch.from_numpy(store.adversarial_rows(record.key)[rows])
    name = f"{record.model.name}-{record.attack.name}"
    ids = table["sample_id"].iloc[rows].tolist()
    return MatchedInputs.of(name, f"kept by record {record.key[:12]}", inputs, ids, dataset)
