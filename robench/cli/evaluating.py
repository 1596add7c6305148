"""From a request to records: everything that can be refused is refused before the first attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import ValidationError

from robench.attacks import build_attack
from robench.attention.maps import AttentionExtractor
from robench.cli.requests import (
    DEFAULT_N,
    Request,
    check_threat_options,
    chosen_models,
    threat_model_for,
)
from robench.datasets import Dataset, load_dataset
from robench.devices import resolve_device
from robench.errors import CardError, ModelError, UsageError
from robench.evaluation.listener import Listener
from robench.evaluation.runner import evaluate_model
from robench.evaluation.settings import Settings
from robench.files import ensure_writable
from robench.models.loading import load_checkpoint, load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import LocatedCard
from robench.probes import resolve_layer
from robench.records import InputSpec, PreprocessingSpec, Suite, validation_problems
from robench.results import Store, StoredRecord
from robench.threat_models import ThreatModel

__all__ = ["Evaluation", "Planned", "Samples", "evaluate", "load_requested", "prepare"]

_PROBE = 8


class Planned(NamedTuple):
    """A model, what it is evaluated under, and the samples, prepared as it wants them."""

    model: RobenchModel
    threat: ThreatModel
    dataset: Dataset


@dataclass(frozen=True)
class Evaluation:
    """A checked request, ready to be run."""

    request: Request
    suite: Suite
    device: torch.device
    models: Sequence[Planned]
    """Loaded, on the CPU; moved to the device one at a time."""

    @property
    def jobs(self) -> int:
        """Number of records that the run will give."""
        return sum(
            len(self.suite.for_model(planned.threat.norm, planned.model.outputs))
            for planned in self.models
        )


def prepare(request: Request) -> Evaluation:
    """Check a request and load what it names. Writes nothing.

    Raises:
        RobenchError: an unknown name, a wrong option, a folder that cannot be written, a device
            that is not there, data or weights that cannot be read, a model that does not fit the
            data, an attack that is not defined for a threat model.
    """
    suite = request.load_suite()
    check_threat_options(request)
    ensure_writable(request.results, "--results")
    device = resolve_device(request.device)
    found, dataset_name = chosen_models(request)
    for model in found:
        if isinstance(model, LocatedCard):
            threat_model_for(request, model.card.threat_model)
    samples = Samples(request, dataset_name)
    models = []
    for model in found:
        loaded, dataset = load_requested(request, model, samples)
        _check_fit(loaded, dataset)
        threat = threat_model_for(request, loaded.summary.threat_model)
        models.append(Planned(loaded, threat, dataset))
    for threat in {planned.threat.identity: planned.threat for planned in models}.values():
        for spec in suite.for_norm(threat.norm):
            for stage in spec.stages or (spec,):
                build_attack(stage, threat)
    return Evaluation(request, suite, device, models)


def evaluate(evaluation: Evaluation, listener: Listener) -> list[StoredRecord]:
    """Run what is missing in the store and return all records, model by model.

    Raises:
        RobenchError: as :func:`robench.evaluation.runner.evaluate_model`.
    """
    request = evaluation.request
    store = Store(request.results)
    records: list[StoredRecord] = []
    for model, threat, dataset in evaluation.models:
        records += evaluate_model(
            model.to(evaluation.device),
            dataset,
            evaluation.suite,
            store=store,
            threat_model=threat,
            listener=listener,
            settings=Settings(
                seed=request.seed,
                device=evaluation.device,
                precision=request.precision,
                batch_size=request.batch_size,
                workers=request.workers,
                save_adversarial=request.save_adversarial,
            ),
        )
        # The device's memory belongs to the next model.
        model.to("cpu")
    return records


class Samples:
    """The samples that a request names, prepared once for each preprocessing that models want."""

    def __init__(self, request: Request, name: str, default_n: int = DEFAULT_N) -> None:
        self._request = request
        self._name = name
        self._default_n = default_n
        self._loaded: dict[PreprocessingSpec | None, Dataset] = {}

    def prepared(self, preprocessing: PreprocessingSpec | None = None) -> Dataset:
        """The samples for a model whose card says this.

        Raises:
            RobenchError: as :func:`robench.datasets.load_dataset`, or masks that cannot be read.
        """
        if preprocessing not in self._loaded:
            self._loaded[preprocessing] = self._load(preprocessing)
        return self._loaded[preprocessing]

    def _load(self, preprocessing: PreprocessingSpec | None) -> Dataset:
        request = self._request
        whole = load_dataset(
            self._name,
            split=request.split,
            root=request.data,
            download=request.download,
            preprocessing=preprocessing,
            **dict(request.data_options),
        )
        n = min(self._default_n, len(whole)) if request.n is None else request.n
        samples = whole.subset(n)
        # Masks are needed only after the attacks; a wrong folder should not be found out then.
        samples.masks(range(min(_PROBE, len(samples))))
        return samples


def load_requested(
    request: Request, model: LocatedCard | str, samples: Samples
) -> tuple[RobenchModel, Dataset]:
    """One of :func:`robench.cli.requests.chosen_models`, on the CPU, and its samples.

    Raises:
        RobenchError: as :func:`robench.models.load_model`,
            :func:`robench.models.load_checkpoint` and :meth:`Samples.prepared`.
    """
    if isinstance(model, LocatedCard) or request.architecture is None:
        loaded = load_model(model, trust_pickle=request.trust_pickle, trust_code=request.trust_code)
        return loaded, samples.prepared(loaded.preprocessing)
    dataset = samples.prepared()
    try:
        input_spec = InputSpec.model_validate(
            {"channels": dataset.input_shape[0], **dict(request.input)}
        )
    except ValidationError as error:
        raise CardError(validation_problems(error), where="--input") from error
    loaded = load_checkpoint(
        model,
        request.architecture,
        num_classes=dataset.num_classes,
        dataset=dataset.name,
        threat_model=_assumed_threat(request),
        input=input_spec,
        preprocessing=dataset.preprocessing,
        trust_pickle=request.trust_pickle,
    )
    return loaded, dataset


def _assumed_threat(request: Request) -> ThreatModel:
    if request.eps is None:
        raise UsageError(
            "a weights file does not say what to evaluate it under",
            hint="Add --norm and --eps, such as --norm Linf --eps 8/255",
        )
    return ThreatModel.of(request.norm or "Linf", request.eps)


def _check_fit(model: RobenchModel, dataset: Dataset) -> None:
    """One forward pass of a few samples, before hours are spent."""
    if model.num_classes != dataset.num_classes:
        raise UsageError(
            f"the model has {model.num_classes} classes, {dataset.name} has {dataset.num_classes}",
            where=model.summary.id,
            hint="Choose the data set with --dataset, or correct the card's num_classes",
        )
    _check_layers(model)
    inputs = dataset.batch(range(min(_PROBE, len(dataset))))
    try:
        with torch.no_grad():
            logits = model(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the model does not take {dataset.name}'s inputs {tuple(inputs.shape)}: {reason}",
            where=model.summary.id,
            hint="Check the data set, its size and channels, and the card's forward arguments",
        ) from error
    # A model that fails on some samples can be evaluated: they count as errored.
    if not bool(logits.isfinite().any()):
        raise ModelError(
            "no logit of a clean sample is finite",
            where=model.summary.id,
            hint="The weights hold or produce NaN or infinity: check the checkpoint",
        )


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
