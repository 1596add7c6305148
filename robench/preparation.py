"""From a request to loaded models and samples: all that can be refused is refused here.

:func:`prepare` writes nothing and makes no attack; :meth:`Prepared.run` makes the records.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from robench.attacks import build_attack
from robench.attacks.suites import has_corruptions, load_suite
from robench.attacks.suites.variants import combined, with_settings
from robench.attacks.trials import Trials
from robench.attention.catalogue import AttentionExtractor
from robench.datasets import Dataset
from robench.devices import device_of, resolve_devices, single_precision
from robench.errors import CardError, ModelError, RobenchError, UsageError, first_line
from robench.evaluation.distribution import Distribution
from robench.evaluation.parts import check_divisible
from robench.evaluation.plan import ModelPlan
from robench.evaluation.prepared_model import Examination, Settings
from robench.evaluation.recognition import check_recognised
from robench.evaluation.runner import Listener, Silent, evaluate_model, plan_model
from robench.evaluation.trials import met_by
from robench.execution.ray_cluster import RayCluster, Wanted
from robench.files import ensure_writable
from robench.models.loading import as_it_ran
from robench.models.touched import Touched
from robench.models.wrapper import RobenchModel
from robench.probes import FirstState, precision_named, resolve_layer
from robench.records import Suite
from robench.registry import near_misses
from robench.request import Request
from robench.request_loading import PROBE, load_requested, threat_models_for
from robench.results import Store, StoredRecord
from robench.seeding import own_stream
from robench.stand_ins.catalogue import find_stand_in
from robench.threat_models import CORRUPTIONS, TARGET_RULES, ThreatModel, class_number, parse_norm

ResultT = TypeVar("ResultT")


class Planned(NamedTuple):
    """A model, what it is evaluated under, and the samples, prepared as it wants them."""

    model: RobenchModel
    threat: ThreatModel
    dataset: Dataset


@dataclass(frozen=True)
class Prepared:
    """A checked request, ready to be run."""

    request: Request
    suite: Suite
    device: torch.device
    planned: Sequence[Planned]
    """Where they were loaded or given; moved to the device one at a time."""
    further_devices: tuple[torch.device, ...] = ()
    """Where searches run as well"""

    @property
    def jobs(self) -> int:
        """Number of records that the run will give."""
        return sum(
            len(self.suite.for_model(item.threat.family, item.model.outputs))
            for item in self.planned
        )

    @property
    def settings(self) -> Settings:
        """How the request is to be run."""
        return Settings(
            seed=self.request.seed,
            device=self.device,
            further_devices=self.further_devices,
            precision=self.request.precision,
            draws=self.request.draws,
            batch_size=self.request.batch_size,
            workers=self.request.workers,
            save_adversarial=self.request.save_adversarial,
            trace=self.request.trace,
        )

    @single_precision()
    def run(self, listener: Listener | None = None) -> list[StoredRecord]:
        """Run what is missing in the results folder; all records, model by model.

        Raises:
            RobenchError: as :func:`robench.evaluation.runner.evaluate_model`.
        """
        if self.request.executor == "ray":
            return self._on_cluster(listener or Silent())
        return [
            stored
            for found in self._each(partial(evaluate_model, listener=listener))
            for stored in found
        ]

    def _on_cluster(self, listener: Listener) -> list[StoredRecord]:
        asked = self.request
        wanted = Wanted(
            asked.address,
            asked.cpus_per_task,
            asked.gpus_per_task,
            asked.workers,
            str(asked.device),
        )
        with ExitStack() as stack:
            store = Store(self._folder(stack))
            cluster = stack.enter_context(RayCluster.connect(wanted))
            jobs = Distribution(cluster, store, self.suite, self.settings, listener, asked.shards)
            return jobs.run(self.planned)

    def _folder(self, stack: ExitStack) -> str | Path:
        """Where records go: as asked for, or as long as ``stack`` is open."""
        if self.request.results is not None:
            return self.request.results
        return stack.enter_context(tempfile.TemporaryDirectory(prefix="robench-"))

    @single_precision()
    def plan(self) -> list[ModelPlan]:
        """What :meth:`run` would have to do, model by model; some samples are attacked, and nothing is
        written.

        Raises:
            RobenchError: as :func:`robench.evaluation.runner.plan_model`.
        """
        return list(self._each(plan_model))

    def _each(self, do: Callable[..., ResultT]) -> Iterator[ResultT]:
        examinations: defaultdict[int, Examination] = defaultdict(Examination)
        with ExitStack() as stack:
            folder = self._folder(stack)
            for model, threat, dataset in self.planned:
                home = device_of(model)
                yield do(
                    model.to(self.device),
                    dataset,
                    self.suite,
                    store=Store(folder),
                    threat_model=threat,
                    settings=self.settings,
                    # A model has its samples once in a request, and is there at each radius.
                    examination=examinations[id(model)],
                    part=self.request.part,
                )
                # The device's memory belongs to the next model.
                model.to(home)


@single_precision()
def prepare(request: Request) -> Prepared:
    """Check a request and load what it names. Writes nothing.

    Raises:
        RobenchError: an unknown name, a wrong option, a folder that cannot be written, a device
            that is not there, data or weights that cannot be read, a model that does not fit the
            data, an attack that is not defined for a threat model, a class to aim at that is none,
            a shard of a suite that cannot be divided.
    """
    asked = request.suite
    several: Sequence[str | Path | Suite] = (
        [asked] if isinstance(asked, str | Path | Suite) else asked
    )
    suites = [
        one if isinstance(one, Suite) else load_suite(one, trust_code=request.trust_code)
        for one in several
    ]
    suite = with_settings(combined(suites), request.settings)
    if has_corruptions(suite):
        request = _corrupted(request, suite)
    elif request.goal == "corrupted":
        raise UsageError(
            f"the suite {suite.name!r} has no corruptions", hint="Write --suite corruptions"
        )
    if request.eps is not None:
        # The widest norm: whether ε fits the model's own is seen once that is known.
        ThreatModel.each("L1" if request.norm is None else request.norm, request.eps)
    elif request.norm is not None:
        parse_norm(request.norm)
    if request.trace and request.shard is not None:
        raise UsageError(
            "a trace is kept of whole jobs, not of shards", hint="Leave out --trace or --shard"
        )
    if request.executor == "ray" and (request.shard is not None or request.trace):
        raise UsageError(
            "a cluster divides jobs into parts itself, and keeps no trace",
            hint="Leave out --shard and --trace, or --executor ray",
        )
    if request.results is not None:
        ensure_writable(Path(request.results), "--results")
    device, *further = resolve_devices("cpu" if request.executor == "ray" else request.device)
    if further and request.workers is not None:
        raise UsageError(
            "there is one search on each of several devices, and --workers says how many",
            hint="Leave out --workers",
        )
    loaded = load_requested(request)
    met = {dataset: _met_by(request, dataset, suite) for dataset in {d for _, d in loaded}}
    planned = [
        Planned(model, met[dataset] or threat.aimed_at(targets_for(request, dataset)), dataset)
        for model, dataset in loaded
        for threat in threat_models_for(request, model.summary.threat_model)
    ]
    models = {id(item.model): item for item in planned}.values()
    for item in models:
        check_fit(item.model, item.dataset, device)
    _check_entries(suite, [item.threat for item in planned])
    if request.shards is not None:
        for _, _, dataset in planned:
            if request.shards > len(dataset):
                raise UsageError(
                    f"{len(dataset)} samples make no {request.shards} parts",
                    where="--shards",
                    hint="Choose fewer",
                )
    if request.part is not None:
        for model, threat, dataset in planned:
            for spec in suite.for_model(threat.family, model.outputs):
                check_divisible(spec, threat, len(dataset), request.part)
    if request.results is not None:
        for model, _, dataset in models:
            home = device_of(model)
            check_recognised(model, dataset, Store(request.results), device)
            model.to(home)
    return Prepared(request, suite, device, planned, tuple(further))


def targets_for(request: Request, dataset: Dataset) -> str | None:
    """The targets that a request names for a data set's samples, as a threat model has them.

    Raises:
        UsageError: they are no rule and no class of the data set.
    """
    if request.targets is None:
        return None
    asked, names = str(request.targets), list(dataset.class_names)
    if asked in TARGET_RULES:
        return asked
    # A text is a name before it is a number: folders may be called 1 to 10.
    if asked in names and not isinstance(request.targets, int):
        return str(names.index(asked))
    number = class_number(asked)
    if number is not None and number < dataset.num_classes:
        return asked
    close = (
        [] if asked.removeprefix("-").isdecimal() else near_misses(asked, [*TARGET_RULES, *names])
    )
    raise UsageError(
        f"targets {asked!r:.100} are no rule, and no class of {dataset.name}",
        hint=f"Did you mean {' or '.join(map(repr, close))}?"
        if close
        else f"Use {', '.join(TARGET_RULES)}, a class's name, or its number from 0 to "
        f"{dataset.num_classes - 1}",
    )


def _corrupted(request: Request, suite: Suite) -> Request:
    """The request for a suite of corruptions.

    Raises:
        UsageError: it has attacks as well, or the request names a ball or targets.
    """
    if any(spec.norms != (CORRUPTIONS,) for spec in suite.attacks):
        raise UsageError(
            f"the suite {suite.name!r} has attacks and corruptions, which no number joins",
            hint="Run them one after the other, each with its own --suite",
        )
    if request.norm is not None or request.eps is not None or request.goal == "targeted":
        raise UsageError(
            "corruptions have no adversary: no norm, no radius and no targets",
            hint="Leave out --norm, --eps, --goal and --targets",
        )
    return replace(request, goal="corrupted")


def _met_by(request: Request, dataset: Dataset, suite: Suite) -> ThreatModel | None:
    """The corruptions that a data set's samples are evaluated under; None: there is an adversary.

    Raises:
        UsageError: the data set comes with corrupted images that the request has no use for.
        RobenchError: as :func:`robench.evaluation.trials.met_by`.
    """
    corrupted = request.goal == "corrupted"
    if dataset.published is not None and (not corrupted or request.executor == "ray"):
        raise UsageError(
            "a folder of corrupted images is for --suite corruptions, and no cluster has it",
            hint="Leave out --dataset-option corrupted=FOLDER, or else --executor ray",
        )
    return met_by(dataset, suite) if corrupted else None


def _check_entries(suite: Suite, threats: Sequence[ThreatModel]) -> None:
    """Refuse entries that cannot be built for what the models are evaluated under."""
    for threat in {threat.identity: threat for threat in threats}.values():
        for spec in suite.for_norm(threat.family):
            for stage in spec.stages or (spec,):
                trials = isinstance(build_attack(stage, threat), Trials)
                if trials != (threat.corrupted is not None) or (trials and spec.stages):
                    raise UsageError(
                        f"{stage.name} is no entry of its own for {threat.family}",
                        where=f"suite {suite.name}",
                        hint='Corruptions are an entry without stages and with norms = ["corruptions"]',
                    )
                if stage.through is not None:
                    find_stand_in(stage.through)


def check_fit(model: RobenchModel, dataset: Dataset, device: torch.device) -> None:
    """Two forward passes at most, of a few samples and of one alone, before hours are spent.

    What the model's code reads meanwhile is in the model's key, or makes it unique. ``device`` is where
    the model will be evaluated.

    Raises:
        ModelError, UsageError, CardError: the model does not fit the data, or its card.
    """
    inputs = dataset.batch(range(min(PROBE, len(dataset))))  # whose files are not the model's
    # What a randomised model draws here is not drawn from the caller's generators.
    with own_stream(0, device), Touched() as touched:
        _try_out(model, dataset, inputs.to(device_of(model)))
    as_it_ran(model, touched)


def _try_out(model: RobenchModel, dataset: Dataset, inputs: Tensor) -> None:
    if model.num_classes != dataset.num_classes:
        raise UsageError(
            f"the model has {model.num_classes} classes, {dataset.name} has {dataset.num_classes}",
            where=model.summary.id,
            hint="Of some of the model's classes, say which: --dataset-option class_names=A,B,… names "
            "all folders in the order of the outputs, num_classes=N counts classes that are numbers. "
            "Else choose the data set with --dataset, or correct the card's num_classes",
        )
    model.first = FirstState.of(model.network)
    _check_layers(model)
    try:
        with torch.no_grad(), precision_named(model):
            logits = model(inputs)
    except RobenchError:
        raise
    except Exception as error:  # A network may raise anything.
        # One that fails on some samples can be evaluated: those count as errored.
        if len(inputs) > 1 and _takes(model, inputs[-1:]):
            return
        raise ModelError(
            f"the model does not take {dataset.name}'s inputs {tuple(inputs.shape)}: "
            f"{type(error).__name__}: {first_line(error)}",
            where=model.summary.id,
            hint="Check the data set, its size and channels, and the card's forward arguments",
        ) from error
    if not bool(logits.isfinite().any()):
        raise ModelError(
            "no logit of a clean sample is finite",
            where=model.summary.id,
            hint="The weights hold or produce NaN or infinity: check the checkpoint",
        )
    if len(inputs) > 1 and not _takes(model, inputs[:1]):
        raise ModelError(
            f"the model takes {len(inputs)} inputs at a time and fails on one alone",
            where=model.summary.id,
            hint="Evaluation uses batches of several sizes: let the model take any",
        )


def _takes(model: RobenchModel, inputs: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(inputs)
    except Exception:  # A network may raise anything.
        return False
    return True


def _check_layers(model: RobenchModel) -> None:
    """Refuse layers that a card names and the network has not; metrics come after the attacks."""
    spec = model.attention
    try:
        if spec.method != "none":
            AttentionExtractor(model, method=spec.method, layer=spec.layer)
        if spec.feature_layer is not None:
            resolve_layer(model, spec.feature_layer)
    except UsageError as error:
        raise CardError(str(error), where=f"{model.summary.id}: attention") from error
