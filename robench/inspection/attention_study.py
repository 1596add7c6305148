"""A closer look at a record: its adversarial inputs seen through any map, at any layer and class.

The values come from the very functions that fill the records, so that the card's own map gives
the record's own numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from robench.attention.catalogue import ATTENTION_METHODS, AttentionExtractor
from robench.datasets import Dataset
from robench.errors import UsageError
from robench.evaluation.adversarial_inputs import KeptInputs
from robench.evaluation.record_builder import half_broken, panel_of
from robench.evaluation.runner import Listener, key_of
from robench.evaluation.sample_metrics import SampleMetrics, Target, summarise
from robench.inspection.verification import check_sources, positions, predictions
from robench.metric_catalogue import METRICS
from robench.models.wrapper import RobenchModel
from robench.preparation import Planned, Prepared, prepare
from robench.records import AttentionSpec, Outcome, SampleOutcome
from robench.registry import unknown_name
from robench.request import PRECISIONS, Request
from robench.results import SamplePanel, Store, StoredRecord
from robench.results.arrays import Array, ArrayRows
from robench.results.tables import SampleRows

Display = Callable[[int], AbstractContextManager[Listener | None]]

_BATCH_SIZE = 256
"""Inputs at a time; fewer where the memory does not suffice."""

_MISSING = ("no_attention", "no_features")
"""Flags that say why a kind of metric is missing."""


@dataclass(frozen=True)
class AttentionStudy:
    """What the closer look at one model saw.

    Attributes:
        stored: the record and its table with these maps' values in place of its own; in memory.
        panel: samples for the overlays, half of them broken; None where inputs are no pictures.
        source: where the adversarial inputs came from, ``stored`` or ``fresh``.
    """

    stored: StoredRecord
    panel: SamplePanel | None
    source: str


def chosen_attention(
    model: RobenchModel, *, method: str | None = None, layer: str | None = None
) -> AttentionSpec:
    """The card's way to look, with another kind of map or another layer in its place.

    Args:
        model: whose card is the default.
        method: name in :data:`robench.attention.ATTENTION_METHODS`.
        layer: dotted name of a submodule.

    Raises:
        UnknownNameError: there is no such method; near misses are listed.
        UsageError: the card switches attention off, and no method is given.
    """
    card = model.attention
    name = card.method if method is None else method
    if name == "none":
        raise UsageError(
            "the card switches attention maps off",
            where=model.summary.id,
            hint=f"Choose one of {', '.join(ATTENTION_METHODS)} with --map",
        )
    has_layers = ATTENTION_METHODS[name].find_layer is not None
    kept = card.layer if layer is None and has_layers else layer
    return AttentionSpec.model_validate(
        {"method": name, "layer": kept, "feature_layer": card.feature_layer}
    )


def chosen_target(text: str, class_names: Sequence[str]) -> Target:
    """``true``, ``predicted``, a class's name, or its number.

    Raises:
        UnknownNameError: there is no such class; near misses are listed.
    """
    names = list(class_names)
    # A class may be called "true": its number is then the way to ask for it.
    if text == "true":
        return "true"
    if text == "predicted":
        return "predicted"
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise unknown_name("class", text, ["true", "predicted", *names])


def study_attention(
    stored: StoredRecord,
    adversarial: Array | ArrayRows,
    model: RobenchModel,
    dataset: Dataset,
    *,
    attention: AttentionSpec | None = None,
    target: Target = "true",
    samples: int = 16,
    device: torch.device,
    source: str = "stored",
) -> AttentionStudy:
    """Measure a record's adversarial inputs with a chosen map.

    Args:
        stored: the record and its table.
        adversarial: (n, C, H, W) in [0, 1], in the order of the table's rows.
        model: the model of the record; moved to the device, otherwise left as it is.
        dataset: the samples of the record.
        attention: how to look; None: as the card says.
        target: the class that maps are for.
        samples: how many go into the panel.
        device: where to run.
        source: where the adversarial inputs are from.

    Raises:
        UsageError: model or data are not those of the record, a class is chosen for maps that
            are the same for every class, or a layer for maps that have none.
        UnknownNameError: there is no such layer; near misses are listed.
        ModelError: the method is not defined for this network or layer.
        StoreError: as many adversarial inputs as samples are needed, and are not there.
    """
    check_sources(stored, adversarial, model, dataset)
    spec = chosen_attention(model) if attention is None else attention
    model = model.to(device)
    _try_map(model, dataset, spec, target, device)
    record, frame = stored.record, stored.table
    # Those that the record has values for: classified correctly, by finite logits.
    kept = (frame["clean_prediction"] == frame["label"]).to_numpy(bool, na_value=False).nonzero()[0]
    frame = frame.iloc[kept]
    rows = positions(dataset.sample_ids, frame["sample_id"])
    metrics = SampleMetrics(
        model, dataset, rows, device, _BATCH_SIZE, attention=spec, target=target
    )
    adv_inputs = KeptInputs(adversarial, kept.tolist())
    clean_predictions, adv_predictions = (
        predictions(frame[f"{side}_prediction"]) for side in ("clean", "adv")
    )
    shown = adv_predictions >= 0
    values = metrics.values(adv_inputs, shown)
    broken, survived = (
        torch.tensor((frame["outcome"] == kind.value).to_numpy(bool))
        for kind in (Outcome.BROKEN, Outcome.SURVIVED)
    )
    changed = record.model_copy(
        update={
            "metrics": summarise(values, broken, survived),
            "attention_method": _description(metrics, target, dataset),
            "flags": (
                *(flag for flag in record.flags if flag.name not in _MISSING),
                *metrics.methods.flags,
            ),
        }
    )
    panel = panel_of(
        metrics,
        half_broken(broken, survived & shown, samples),
        adv_inputs,
        clean_predictions,
        adv_predictions,
    )
    judged = (broken | survived).nonzero().flatten().tolist()
    table = _seen_so(stored, {int(kept[place]): place for place in judged}, values)
    return AttentionStudy(StoredRecord.of(changed, SampleRows.of(table)), panel, source)


def _seen_so(
    stored: StoredRecord, places: Mapping[int, int], values: Mapping[str, Tensor]
) -> Iterator[SampleOutcome]:
    """The record's rows, those at ``places`` with these values (m,) of metrics in place of their own."""
    for at, row in enumerate(stored.rows):
        if (place := places.get(at)) is None:
            yield row
            continue
        others = {name: value for name, value in row.values.items() if name not in METRICS}
        own = {name: float(column[place]) for name, column in values.items()}
        yield row.model_copy(update={"values": {**own, **others}})


def _try_map(
    model: RobenchModel,
    dataset: Dataset,
    spec: AttentionSpec,
    target: Target,
    device: torch.device,
) -> None:
    """Refuse what was asked for; a record would only note that there are no maps."""
    if target != "true" and not ATTENTION_METHODS[spec.method].by_class:
        raise UsageError(
            f"{spec.method} maps are the same for every class",
            where=str(target),
            hint="Leave out the target, or choose grad_cam",
        )
    probe = dataset.batch([0]).to(device)
    AttentionExtractor(model, method=spec.method, layer=spec.layer)(
        probe, dataset.labels[:1].to(device)
    )


def _description(metrics: SampleMetrics, target: Target, dataset: Dataset) -> str | None:
    if metrics.description is None or target == "true":
        return metrics.description
    which = "the predicted class" if target == "predicted" else dataset.class_names[int(target)]
    return f"{metrics.description} for {which}"


@dataclass(frozen=True)
class Look:
    """How to look.

    Attributes:
        attack: name of an entry of the suite.
        map_name: kind of map; None: the card's.
        layer: where; None: the card's, or found.
        target: the class, as the user wrote it.
        samples: how many to show.
    """

    attack: str
    map_name: str | None
    layer: str | None
    target: str
    samples: int


def study_models(
    request: Request, look: Look, *, display: Display = lambda jobs: nullcontext()
) -> list[AttentionStudy]:
    """Study every model that is asked for. Writes nothing.

    Args:
        request: models, data and attack's suite; the results folder is read.
        look: how.
        display: number of attacks to be run → a context that gives their listener.

    Raises:
        RobenchError: as :func:`robench.preparation.prepare` and
            :func:`study_attention`; an attack that the suite has not, near misses listed.
    """
    if request.goal != "untargeted":
        raise UsageError("attention is studied on untargeted attacks", hint="Leave out the goal")
    prepared = prepare(request)
    suite = prepared.suite
    entries = tuple(spec for spec in suite.attacks if spec.name == look.attack)
    if not entries:
        names = list(dict.fromkeys(spec.name for spec in suite.attacks))
        raise unknown_name(f"attack (suite {suite.name})", look.attack, names)
    prepared = replace(prepared, suite=suite.model_copy(update={"attacks": entries}))
    specs = [
        chosen_attention(planned.model, method=look.map_name, layer=look.layer)
        for planned in prepared.planned
    ]
    target = chosen_target(look.target, prepared.planned[0].dataset.class_names)
    for planned, spec in zip(prepared.planned, specs, strict=True):
        # Before the attacks run.
        _try_map(planned.model, planned.dataset, spec, target, torch.device("cpu"))
    studied = []
    for planned, spec in zip(prepared.planned, specs, strict=True):
        with tempfile.TemporaryDirectory(prefix="robench-") as scratch:
            stored, adversarial, source = _adversarial(prepared, planned, Path(scratch), display)
            study = study_attention(
                stored,
                adversarial,
                planned.model,
                planned.dataset,
                attention=spec,
                target=target,
                samples=look.samples,
                device=prepared.device,
                source=source,
            )
        studied.append(study)
    return studied


def _adversarial(
    prepared: Prepared, planned: Planned, scratch: Path, display: Display
) -> tuple[StoredRecord, ArrayRows, str]:
    """The record, its adversarial inputs (n, C, H, W), and where they are from."""
    kept = Store(prepared.request.folder)
    data = planned.dataset.spec()
    for spec in prepared.suite.for_norm(planned.threat.norm):
        for precision in PRECISIONS:
            settings = replace(prepared.settings, precision=precision)
            key = key_of(planned.model, data, planned.threat, spec, settings)
            if kept.has(key) and kept.has_adversarial(key):
                stored = kept.read(key).shown_as(spec.name, planned.model.summary, data)
                return stored, kept.adversarial_rows(key), "stored"
    request = replace(prepared.request, results=scratch, save_adversarial=True)
    job = replace(prepared, request=request, planned=[planned])
    with display(job.jobs) as listener:
        (stored,) = job.run(listener)
    return stored, Store(scratch).adversarial_rows(stored.record.key), "fresh"
