"""Adversarial inputs that were made elsewhere become a record, like those of any attack.

Who made them, and how, counts for nothing: they are judged by the one adjudicator, in float32, with
the original model.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robench.datasets.adversarial_files import AdversarialFile, MatchedInputs
from robench.devices import single_precision
from robench.errors import UsageError
from robench.evaluation.adversarial_inputs import room_for
from robench.evaluation.batch_attacks import judge_proposals
from robench.evaluation.cascade_state import CascadeState, PhaseCounts, StageRun
from robench.evaluation.environment import PeakMemory
from robench.evaluation.prepared_model import ONE_AT_A_TIME, PreparedModel, prepare_model
from robench.evaluation.record_builder import RecordBuilder
from robench.evaluation.runner import Listener, Silent, kept_record, key_of
from robench.evaluation.samples import SearchResult
from robench.inspection.eight_bits import in_eight_bits
from robench.metric_catalogue import foreign_metrics
from robench.preparation import Planned, Prepared, prepare
from robench.records import JUDGED, AttackSpec, JudgedInputs, MadeFor
from robench.request import Request
from robench.results import Store, StoredRecord
from robench.results.bounds import check_bounds, known_bounds
from robench.seeding import own_stream
from robench.text import file_name

CLEAN_ERROR = "misclassified without it"
NOT_FINITE = "not finite"
OUTSIDE_BOX = "outside the box"
OUTSIDE_BALL = "outside the ball"
MODEL_FAILS = "the model fails on it"
RIGHT = "classified correctly"
"""Why an input does not count, in the order in which it is asked"""

TRANSFERRED = "transfer"
"""What the columns of inputs begin with that were made for another model"""

_LONGEST_NAME = 60


@single_precision()
def judge(request: Request, source: Any) -> StoredRecord:
    """Judge adversarial inputs and file them among the records of the model.

    Args:
        request: the one model, its samples and the threat model. Where it names no ``n`` and the
            inputs are not of the samples that it would take, they may be of the whole data set.
        source: a file, or what :meth:`AdversarialFile.of` takes in its place.

    Returns:
        The record; ``.record.judged`` says what became of the inputs. The same inputs for the same
        model and samples are one record, whatever the file is called.

    Raises:
        RobenchError: as :func:`robench.preparation.prepare`; inputs that cannot be matched to the
            samples. Nothing is filed then.
        ContradictionError: a find is of a sample that the folder's bounds verify. The record is kept.
    """
    if request.goal != "untargeted":
        raise UsageError(
            "inputs are judged by whether they are misclassified", hint="Leave out the goal"
        )
    content = AdversarialFile.of(source)
    prepared = prepare(request)
    if len(prepared.planned) != 1:
        raise UsageError(
            f"inputs are judged for one model within one radius, not for {len(prepared.planned)}",
            hint="Choose one eps",
        )
    (planned,) = prepared.planned
    if request.n is None and not content.fits(planned.dataset):
        whole = prepare(replace(request, at_most=None))
        if content.fits(whole.planned[0].dataset):
            prepared, (planned,) = whole, whole.planned
    matched = content.matched(planned.dataset, planned.threat.radius)
    with ExitStack() as stack:
        folder = request.results or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="robench-")
        )
        return Judge(Store(folder), prepared, planned).file(matched)


class Judge:
    """Judges inputs for the samples of one model, and files what becomes of them."""

    def __init__(
        self,
        store: Store,
        prepared: Prepared,
        planned: Planned,
        listener: Listener | None = None,
    ) -> None:
        self._store = store
        self._listener = listener or Silent()
        self._model = planned.model.to(prepared.device)
        self._planned = planned
        # Nothing is searched: what searches run on, and how many, decides nothing.
        self._settings = replace(
            prepared.settings, precision="fp32", workers=1, save_adversarial=True
        )
        self._bounds = known_bounds(store)
        self._ready: PreparedModel | None = None

    def file(self, matched: MatchedInputs, made_for: MadeFor | None = None) -> StoredRecord:
        """The record of the inputs, from the store or made now.

        Inputs that were ``made_for`` another model are kept by its record, and not once more.

        Raises:
            RobenchError: as :func:`judge`.
        """
        store, model, settings = self._store, self._model, self._settings
        spec = _spec(matched, made_for)
        data, foreign = self._planned.dataset.spec(), foreign_metrics()
        key = key_of(model, data, self._planned.threat, spec, settings, foreign)
        with store.claim(key, wait=float("inf")):
            stored = kept_record(store, key, adversarial=made_for is None)
            self._listener.job_started(model.summary.name, spec.name, 1, stored is not None)
            if stored is None:
                with own_stream(settings.seed, settings.device):
                    stored = _judge(self._job(), spec, matched, key, foreign, store, made_for)
        check_bounds([stored], self._bounds)
        stored = stored.shown_as(spec.name, model.summary, data)
        self._listener.job_finished(stored)
        return stored

    def _job(self) -> PreparedModel:
        """What judging starts from: once for all inputs, unless the model draws or changes."""
        if (job := self._ready) is None:
            planned = self._planned
            job = prepare_model(self._model, planned.dataset, planned.threat, self._settings, ())
            if ONE_AT_A_TIME.isdisjoint(flag.name for flag in job.flags):
                self._ready = job
        return job


def _spec(matched: MatchedInputs, made_for: MadeFor | None) -> AttackSpec:
    kind, params = JUDGED, {"sha256": matched.sha256}
    if made_for is not None:
        kind, params = TRANSFERRED, {**params, "record": made_for.record}
    name = f"{kind}-{file_name(matched.name)[:_LONGEST_NAME]}-{matched.sha256[:8]}"
    return AttackSpec(name=name, attack=JUDGED, params=params)


@dataclass
class _LeftOut:
    """The inputs that do not count, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    messages: dict[int, str] = field(default_factory=dict)
    """By the sample's place in the data set"""
    outside: dict[str, list[float]] = field(default_factory=dict)
    """By how much, by the reason"""

    def add(self, row: int, reason: str, by: float | None = None) -> None:
        """An input that lies outside ``by`` so much, or does not count for another reason."""
        self.counts[reason] += 1
        self.messages[row] = reason if by is None else f"{reason} by {by:.3g}"
        if by is not None:
            self.outside.setdefault(reason, []).append(by)

    def extent(self, reason: str) -> tuple[float, float] | None:
        """The least and the most by which inputs lie outside."""
        sizes = self.outside.get(reason)
        return (min(sizes), max(sizes)) if sizes else None


def _judge(
    job: PreparedModel,
    spec: AttackSpec,
    matched: MatchedInputs,
    key: str,
    foreign: dict[str, str],
    store: Store,
    made_for: MadeFor | None,
) -> StoredRecord:
    started, memory = time.perf_counter(), PeakMemory(job.settings.device)
    given = torch.full((len(job.dataset),), -1)
    given[matched.rows] = torch.arange(len(matched.rows))
    left_out, saved = _LeftOut(), 0
    for row in matched.rows[~torch.isin(matched.rows, job.rows)].tolist():
        left_out.add(row, CLEAN_ERROR)
    progress, shape = store.progress(key), job.dataset.input_shape
    room = room_for(len(job), shape, lambda: progress.row_file(len(job), shape))
    everyone = torch.arange(len(job))
    state = CascadeState.nothing_yet(room).with_phase(PhaseCounts(everyone), new=True)
    for positions in torch.split(everyone, job.adjudicator.parts.size):
        rows = given[job.rows[positions]]
        result, also_saved = _judge_part(job, positions, rows, matched.inputs, left_out)
        state = state.merged(positions, result, 0)
        saved += also_saved
    counts = replace(state.phases[0], seconds=time.perf_counter() - started, finished=True)
    runs = (counts.told(StageRun(0, "all"), spec),)
    state = replace(state, stage_names=(spec.name,), runs=runs)
    flags = [*job.model.remarks, *job.flags]
    builder = RecordBuilder(spec, job, state)
    summary = _summary(matched, left_out, int(builder.broken.sum()), saved, made_for)
    record = builder.record(key, foreign, flags, time.perf_counter() - started, memory.mib())
    record = record.model_copy(update={"judged": summary})
    samples = [
        sample.model_copy(update={"message": sample.message or left_out.messages.get(row)})
        for row, sample in enumerate(builder.samples)
    ]
    own = made_for is None
    stored = store.write(
        record,
        samples,
        adversarial=builder.adversarial() if own else None,
        arrays=builder.panel() if own else None,
    )
    progress.clear()
    return stored


def _judge_part(
    job: PreparedModel,
    positions: Tensor,
    given: Tensor,
    inputs: Tensor,
    left_out: _LeftOut,
) -> tuple[SearchResult, int]:
    """Judge the inputs of the samples at ``positions`` among the correctly classified, int64 (k,).

    ``given`` says which of the ``inputs`` is each one's, int64 (k,), −1: none. Also how many finds
    are finds in 8 bits too.
    """
    samples = job.load(positions)
    brought = given >= 0
    proposed = samples.inputs.clone()
    proposed[brought] = inputs[given[brought]].to(proposed.device)
    result, verdicts = judge_proposals(proposed, job.adjudicator, samples)
    found, saved = result.broken, 0
    if bool(found.any()):
        finds = proposed[found], samples.inputs[found], samples.labels[found]
        saved = int(in_eight_bits(*finds, job.adjudicator)[1].broken.sum())
    beyond = torch.maximum(-proposed, proposed - 1).flatten(1).amax(dim=1)
    for place in (brought & ~found.cpu()).nonzero().squeeze(1).tolist():
        row = int(job.rows[positions[place]])
        if not bool(proposed[place].isfinite().all()):
            left_out.add(row, NOT_FINITE)
        elif (by := float(beyond[place])) > 0:
            left_out.add(row, OUTSIDE_BOX, by)
        elif not verdicts.allowed[place]:
            left_out.add(row, OUTSIDE_BALL, float(verdicts.size[place]) - job.threat_model.radius)
        else:
            left_out.add(row, MODEL_FAILS if place in result.errors else RIGHT)
    return result, saved


def _summary(
    matched: MatchedInputs, left_out: _LeftOut, finds: int, saved: int, made_for: MadeFor | None
) -> JudgedInputs:
    asked = (CLEAN_ERROR, NOT_FINITE, OUTSIDE_BOX, OUTSIDE_BALL, MODEL_FAILS, RIGHT)
    return JudgedInputs(
        source=matched.name,
        sha256=matched.sha256,
        read_as=matched.read_as,
        inputs=len(matched.rows),
        finds=finds,
        not_counted={
            reason: left_out.counts[reason] for reason in asked if left_out.counts[reason]
        },
        outside_ball_by=left_out.extent(OUTSIDE_BALL),
        outside_box_by=left_out.extent(OUTSIDE_BOX),
        finds_in_8_bits=saved,
        made_for=made_for,
    )
