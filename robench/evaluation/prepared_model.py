"""What all attacks on a model start from: clean logits, the search's model, metrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.model_choice import SearchChoice, choose_search_model
from robench.acceleration.search_models import SearchModel, SearchModels
from robench.attacks.base import Others
from robench.attacks.goals import Goal
from robench.attacks.losses import LOSSES, Loss, margin
from robench.datasets import Dataset
from robench.doctor import examine
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.aims import Aims, choose_aims
from robench.evaluation.as_given import as_given, as_given_flag
from robench.evaluation.clean_pass import answered, classify
from robench.evaluation.expected_passes import planned_passes
from robench.evaluation.given import Given, few_rows
from robench.evaluation.randomised import Randomised
from robench.evaluation.replicas import Replica, replicas
from robench.evaluation.sample_metrics import SampleMetrics
from robench.evaluation.samples import Samples
from robench.execution import (
    Executor,
    Forks,
    ThisProcess,
    Threads,
    survives_fork,
    worker_count,
)
from robench.models.wrapper import RobenchModel
from robench.probes import FirstState
from robench.records import AttackSpec, Flag
from robench.seeding import own_stream
from robench.stand_ins.base import Setting
from robench.stand_ins.catalogue import find_stand_in
from robench.threat_models import ThreatModel

_SHARD_VALUES = 128 * 2**20
_STATE_COPIES = 16  # tensors of the inputs' size that the largest attack state holds
_BATCH = 256  # for passes outside the search
ONE_AT_A_TIME = {"randomised", "changing_state", "history_dependent"}
"""The doctor's names of models whose passes depend on those before them"""
_SHOWN_VALUES = 2**24  # of all the inputs that stand-ins and attacks see of other samples,
_FEWEST_SHOWN, _MOST_SHOWN = 128, 1000  # so many inputs at least, and at most


@dataclass(frozen=True)
class Settings:
    """How to run an evaluation: all that may change the time that it takes, and the seed."""

    seed: int = 0
    """Of all draws"""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    further_devices: tuple[torch.device, ...] = ()
    """Others of its kind: a search runs on each"""
    precision: str = "auto"
    """Of the search, ``auto`` or a name of :mod:`robench.acceleration.model_choice`"""
    draws: int | None = None
    """Of one verdict on a model with random outputs; None: as its card says"""
    batch_size: int | None = None
    """Inputs at a time; None: chosen by measurement"""
    workers: int | None = None
    """Searches side by side; None: on a CPU one for each thread of torch's"""
    save_adversarial: bool = False
    """Keep every adversarial input in the store"""
    trace: bool = False
    """Keep what searches see at each step in the store"""
    snapshot_seconds: float = 10.0
    """How often an unfinished job is saved"""


@dataclass(frozen=True)
class PreparedModel:
    """What all attacks on a model start from. It is their source of samples."""

    model: RobenchModel
    """On its device"""
    dataset: Dataset
    """All samples, n of them"""
    settings: Settings
    logits: Tensor
    """Clean, float32 (n, K) on the CPU"""
    errors: dict[int, str]
    """Sample → why the model gave no logits for it"""
    rows: Tensor
    """int64 (m,): the correctly classified samples that have something to be attacked for; of
    corruptions, which are no attack, all that the model answers"""
    aims: Aims
    """What is attacked of them, and towards what; attacks go by positions among these"""
    flags: tuple[Flag, ...]
    """What the doctor saw on some of the samples"""
    adjudicator: Adjudicator
    """Judges with the original model"""
    choice: SearchChoice
    """What searches run on, and how many inputs of all searches together at a time"""
    executor: Executor
    """Where searches run, side by side"""
    shard_size: int
    """Samples that are on the device at a time"""
    metrics: SampleMetrics
    """Of the correctly classified samples"""
    built: dict[str, SearchModel] = field(default_factory=dict, repr=False)
    """Stand-ins by what an attack calls them"""
    whole: PreparedModel | None = field(default=None, repr=False)
    """Of a part of the samples: what all of them start from"""
    replicas: tuple[Replica, ...] = field(default=(), repr=False)
    """The model on further devices"""
    original: PreparedModel | None = field(default=None, repr=False)
    """On a further device: what this is a copy of"""
    randomised: Randomised | None = field(default=None, repr=False)
    """None: outputs are not random"""

    def __len__(self) -> int:
        return len(self.aims)

    @property
    def workers(self) -> int:
        """Searches side by side."""
        return self.executor.size

    @property
    def models(self) -> SearchModels:
        """What searches run on, by the kind of attack."""
        return self.choice.models

    @property
    def threat_model(self) -> ThreatModel:
        """The ball."""
        return self.adjudicator.threat_model

    def at(self, number: int) -> PreparedModel:
        """What worker ``number``, from 0, searches on: the same on its own device."""
        if number == 0 or not self.replicas:
            return self
        own = self.replicas[number - 1]
        return replace(
            self,
            model=own.model,
            settings=replace(self.settings, device=own.device),
            adjudicator=own.adjudicator,
            choice=replace(self.choice, models=own.models),
            built=own.built,
            original=self,
        )

    @cached_property
    def keys(self) -> Tensor:
        """int64 (n,), :func:`robench.seeding.sample_keys`."""
        if self.original is not None:
            return self.original.keys
        return seeding.sample_keys(self.settings.seed, self.dataset.sample_ids)

    @property
    def predictions(self) -> Tensor:
        """Clean ones, int64 (n,); without meaning where there are errors."""
        return self.logits.argmax(dim=1)

    @property
    def margins(self) -> Tensor:
        """Clean ones, float32 (n,); without meaning where there are errors."""
        return margin(self.logits, self.dataset.labels)

    @property
    def right(self) -> Tensor:
        """int64 (r,): places among ``rows`` of the correctly classified samples: all but for corruptions."""
        labels = self.dataset.labels[self.rows]
        return (self.predictions[self.rows] == labels).nonzero().squeeze(1)

    def clean_margins_of(self, positions: Tensor) -> Tensor:
        """float32 (k,): how far clean inputs are from the goal, of what is attacked at positions."""
        logits = self.logits[self.rows[self.aims.sample[positions]]]
        return Goal.of(self.threat_model).margin(logits, self.aims.classes[positions])

    def keys_of(self, positions: Tensor) -> Tensor:
        """int64 (k,): keys of what is attacked at int64 positions; of one sample the same."""
        return self.keys[self.rows[self.aims.sample[positions]]]

    @cached_property
    def given(self) -> Given:
        """What the model gives for a few of these samples, by which it is known again."""
        rows = few_rows(self.dataset)
        return Given.of(self.model, self.dataset, rows, self.settings.device)

    @cached_property
    def shown(self) -> Others:
        """What stand-ins and attacks see of other samples, on the device: of ``rows`` those with the
        smallest keys, as many as come to 2²⁴ values, 128 at least and 1,000 at most."""
        device = self.settings.device
        if (known := self.original or self.whole) is not None:
            return Others(known.shown.inputs.to(device), known.shown.labels.to(device))
        count = _SHOWN_VALUES // math.prod(self.dataset.input_shape)
        order = self.keys[self.rows].argsort(stable=True)
        chosen = self.rows[order[: min(max(count, _FEWEST_SHOWN), _MOST_SHOWN)]]
        inputs, labels = self.dataset.batch(chosen), self.dataset.labels[chosen]
        return Others(inputs.to(device), labels.to(device))

    def averaged(self, model: SearchModel) -> SearchModel:
        """Another output of the network: of a model with random outputs, means of it."""
        return model if self.randomised is None else self.randomised.averaged(model)

    def stand_in(self, through: str) -> SearchModel:
        """What is searched in the model's place, built when it is first asked for.

        It is built from the samples that are :attr:`shown`. Neither batch size nor order nor workers
        have a say in it.

        Raises:
            UnknownNameError, UsageError: no such stand-in.
            AttackError: the model cannot have it, or needs none.
        """
        if through not in self.built and self.original is not None:
            self.built[through] = copied = copy.deepcopy(self.original.stand_in(through))
            copied.module.to(self.settings.device)
        if through not in self.built:
            stand_in, seed = find_stand_in(through), self.settings.seed
            setting = Setting(
                model=self.model,
                inputs=self.shown.inputs,
                labels=self.shown.labels,
                threat_model=self.threat_model,
                seed=seed,
                batch_size=self.choice.batch_size,
            )
            # Whichever of the jobs asks first, a model with random outputs draws the same.
            with own_stream(seed, self.settings.device):
                built = stand_in.build(setting)
            self.built[through] = replace(built, own_logits=stand_in.exact)
        return self.built[through]

    def load(self, positions: Tensor) -> Samples:
        """Samples for int64 positions among what is attacked, on the device."""
        chosen, device = self.rows[self.aims.sample[positions]], self.settings.device
        return Samples(
            self.dataset.batch(chosen).to(device),
            self.aims.classes[positions].to(device),
            self.logits[chosen].to(device),
            self.keys[chosen].to(device),
        )


class Examination:
    """What the doctor sees of one model and its samples: the same at every radius, so asked once.

    A model that draws at random or changes while it is used is looked at every time: that is part of
    what a run at one radius does, and several radii together give what each gives alone.
    """

    def __init__(self) -> None:
        self._seen: tuple[Flag, ...] | None = None

    def flags(
        self, model: RobenchModel, inputs: Tensor, labels: Tensor, logits: Tensor
    ) -> list[Flag]:
        """Of :func:`robench.doctor.examine`, in brief; ``logits`` are the model's of the inputs."""
        if self._seen is not None:
            return list(self._seen)
        found = examine(model, inputs, labels, brief=True, logits=logits)
        flags = [finding.flag() for finding in found]
        if ONE_AT_A_TIME.isdisjoint(flag.name for flag in flags):
            self._seen = tuple(flags)
        return flags


def prepare_model(
    model: RobenchModel,
    dataset: Dataset,
    threat_model: ThreatModel,
    settings: Settings,
    planned: Sequence[AttackSpec],
    examination: Examination | None = None,
) -> PreparedModel:
    """Classify the samples, examine the model, and choose what searches run on: minutes, at times.

    The model is moved to the settings' device. The cost of the ``planned`` attacks, which are to come,
    decides what they search on. An ``examination`` is of this model and these samples, at whatever
    radius.

    Raises:
        ModelError: logits of another width than the card says, or none that are finite.
        UsageError: the precision that was asked for does not agree with the original.
    """
    device, asked = settings.device, settings
    model = model.to(device)
    first = model.first or FirstState.of(model.network)
    batch_size = min(settings.batch_size or _BATCH, _BATCH)
    logits, errors, probe = classify(model, model, dataset, device, batch_size)
    labels, known = (of_all[answered(errors, len(logits))] for of_all in (dataset.labels, logits))
    flags = (examination or Examination()).flags(model, probe, labels.to(device), known.to(device))
    given, model = model, as_given(model, first, [flag.name for flag in flags])
    if model is not given:
        logits, errors, probe = classify(model, model, dataset, device, batch_size)
        labels = dataset.labels[answered(errors, len(logits))]
        flags.append(as_given_flag())
    labels = labels.to(device)
    randomised = Randomised.seen(flags, model, (probe, labels), settings.draws, settings.seed)
    if randomised is not None:
        flags = randomised.flags(flags)
        logits, errors = randomised.classified(dataset, device, batch_size)
        # What is chosen by time would draw in another order the next time.
        asked = replace(settings, precision="fp32", batch_size=batch_size)
    correct = logits.argmax(dim=1) == dataset.labels
    due = _due(threat_model, correct, errors)
    rows, aims = choose_aims(threat_model.targets, dataset, logits, due, settings.seed)
    # Passes that leave something behind, or draw from one stream, must not overlap.
    alone = bool({flag.name for flag in flags} & ONE_AT_A_TIME)
    further = () if alone else settings.further_devices
    workers = 1 if alone or further else worker_count(device, settings.workers)
    # Searches on a CPU share its memory and its caches; other devices have their own.
    sharing = 1 + len(further) if device.type == "cpu" else 1
    choice = choose_search_model(
        model,
        probe,
        labels,
        precision=asked.precision,
        threat_model=threat_model,
        batch_size=asked.batch_size,
        workers=max(workers, sharing),
        alone=not further,
        planned_passes=planned_passes(planned, threat_model, model, len(aims)),
    )
    adjudicator = Adjudicator(model, threat_model, batch_size)
    if randomised is not None:
        choice = randomised.searched(choice)
        adjudicator = randomised.adjudicator(threat_model, batch_size)
    every_pass = partial(_every_pass, adjudicator, choice.models, probe[:2], labels[:2])
    pays = settings.workers is not None or not choice.is_short
    return PreparedModel(
        model=model,
        dataset=dataset,
        settings=settings,
        logits=logits,
        errors=errors,
        rows=rows,
        aims=aims,
        flags=tuple(flags),
        adjudicator=adjudicator,
        choice=replace(choice, batch_size=choice.batch_size * (1 + len(further)) // sharing),
        executor=_executor(workers if pays else 1, len(further), every_pass),
        shard_size=max(64, _SHARD_VALUES // (_STATE_COPIES * math.prod(dataset.input_shape))),
        metrics=SampleMetrics(model, dataset, rows[correct[rows]], device, _BATCH),
        replicas=replicas(model, adjudicator, choice.models, further, probe[:2]),
        randomised=randomised,
    )


def _due(threat_model: ThreatModel, correct: Tensor, errors: Collection[int]) -> Tensor:
    """bool (n,): of samples that the model does not fail on those that are ``correct``, bool (n,); all of
    them for corruptions."""
    known = torch.tensor([row not in errors for row in range(len(correct))], dtype=torch.bool)
    return known if threat_model.corrupted is not None else known & correct


def _executor(workers: int, further: int, every_pass: Callable[[], None]) -> Executor:
    """On so many ``further`` devices, or in so many processes, if each can make ``every_pass``."""
    if further:
        return Threads(1 + further)
    return Forks(workers) if workers > 1 and survives_fork(every_pass) else ThisProcess()


def _every_pass(
    adjudicator: Adjudicator, models: SearchModels, inputs: Tensor, labels: Tensor
) -> None:
    """Each kind of pass that a search makes."""
    adjudicator.logits(inputs)
    loss = Loss(LOSSES["ce"], labels, labels)
    for searched_on in models.different():
        searched_on.logits(inputs)
        searched_on.gradient(inputs, loss)
