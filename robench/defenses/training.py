"""``train``: from a recipe's name to a model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from robench import seeding
from robench.datasets import Dataset, load_training_splits
from robench.defenses.catalogue import RECIPES
from robench.defenses.defaults import Defaults, defaults_for
from robench.defenses.engine import Engine, launch
from robench.defenses.export import export_model
from robench.defenses.precision import chosen_precision
from robench.defenses.progress import TrainingProgress
from robench.defenses.provenance import command_line, describe_data, package_versions
from robench.defenses.recipe import Recipe
from robench.defenses.settings import TrainingSettings
from robench.defenses.trainer import Trainer
from robench.defenses.training_data import check_batch_size
from robench.defenses.training_state import STATE_FILE, TrainingState
from robench.devices import resolve_device
from robench.errors import TrainingError, UsageError
from robench.files import ensure_writable
from robench.models.architectures.build import build_architecture
from robench.records import (
    ArchitectureSpec,
    AttentionSpec,
    InputSpec,
    ModelCard,
    Provenance,
    WeightsSpec,
)
from robench.registry import unknown_name
from robench.threat_models import ThreatModel

if TYPE_CHECKING:
    from robench.models.wrapper import RobenchModel

__all__ = ["train"]

_Model = TypeVar("_Model", bound=BaseModel)

_PROBE = 4
"""Samples on which a recipe checks that it can work with a network."""


def train(
    recipe: str | Recipe,
    *,
    dataset: str | Path | Dataset,
    validation: Dataset | None = None,
    architecture: str | ArchitectureSpec | None = None,
    threat_model: str | ThreatModel | None = None,
    out_folder: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    teacher: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    data_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **overrides: Any,
) -> Path:
    """Train a network and write its card and weights.

    The same arguments and seed give the same weights, bit for bit, on the same machine. A run
    that was interrupted, however abruptly, goes on after its last finished epoch when it is
    called again with the same arguments, and ends with the same weights.

    Args:
        recipe: a name of ``RECIPES``, or a recipe with its parameters set.
        dataset: a name, folder or file for :func:`~robench.datasets.load_training_splits`, or a
            data set (then ``validation`` is needed too). The test split is never read.
        validation: samples that choose the checkpoint, with ``dataset`` as an object.
        architecture: name or specification; default: the data set's in ``DEFAULTS``.
        threat_model: ``"Linf-8/255"``; default: the data set's.
        out_folder: the model's folder; default ``model_zoo/<dataset>/<threat>/<name>``.
        name: the model's name; default: the recipe's.
        seed: keys every random choice.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        devices: how many of them; several need Lightning Fabric.
        teacher: a model's id or card, for recipes that learn from one.
        data_root, download, data_options: for ``load_training_splits``.
        overwrite: replace a finished or interrupted run in the folder.
        progress: show a progress bar on stderr.
        overrides: fields of :class:`TrainingSettings` (``epochs``, ``lr``, …) and of the recipe.

    Returns:
        The path of ``card.toml``.

    Raises:
        UnknownNameError: an unknown recipe, architecture, data set or override.
        UsageError: a bad value; a folder that is finished, or interrupted with other settings.
        TrainingError: a teacher is missing, the data is too small, or the loss diverged.
        ModelError: the architecture lacks what the recipe needs.
        DeviceError: the device is not there.
    """
    chosen = resolve_device(device)
    if devices < 1:
        raise UsageError(f"devices must be at least 1, got {devices}")
    by_name = None if isinstance(dataset, Dataset) else str(dataset)
    options = dict(data_options or {})
    train_data, validation_data = _splits(dataset, validation, data_root, download, options)
    defaults = defaults_for(train_data.name)
    loss, settings = _configure(recipe, defaults.settings, overrides)
    check_batch_size(train_data, settings)
    if chosen.type == "cpu" and not settings.threads:
        # Spelled out, so that the recorded command gives the same bits elsewhere.
        settings = settings.model_copy(update={"threads": torch.get_num_threads()})
    threat = _threat(threat_model or defaults.threat_model)
    spec = _architecture(architecture, defaults, train_data.name)
    model_name = name or loss.name
    folder = Path(
        out_folder or Path("model_zoo", train_data.name, threat.slug, model_name)
    ).expanduser()
    _prepare(folder, overwrite)
    guide = _teacher(loss, teacher, train_data.name, threat, spec)

    channels = train_data.input_shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.tag(f"initial weights {seed}"))
        network = build_architecture(spec, train_data.num_classes, channels)
    probe = train_data.batch(range(min(_PROBE, len(train_data))))
    loss.check(network, probe, train_data.num_classes)
    if guide is not None:
        _start_from(network, guide.network)

    command = None
    if by_name is not None and isinstance(recipe, str):
        command = command_line(
            loss,
            settings,
            dataset=by_name,
            architecture=spec,
            threat_model=threat,
            seed=seed,
            name=name,
            teacher=teacher,
        )
    recorded: dict[str, Any] = {
        **settings.model_dump(mode="json"),
        **loss.parameters,
        "precision": chosen_precision(chosen, settings.precision),
        "devices": devices,
        "device": chosen.type,
    }
    if guide is not None:
        recorded["teacher"] = guide.summary.id
        recorded["teacher_sha256"] = guide.summary.weights_sha256
    card = _card(
        name=model_name,
        dataset=train_data.name,
        num_classes=train_data.num_classes,
        threat_model=threat,
        defense=loss.name,
        architecture=spec,
        # The hash is known once the weights are.
        weights=WeightsSpec(path="weights.safetensors", sha256="0" * 64),
        input=InputSpec(channels=channels),
        forward=loss.forward_spec(network, probe),
        attention=_attention(network),
        provenance=Provenance(
            paper=loss.paper,
            link=loss.link,
            venue=loss.venue,
            year=loss.year,
            command=command,
            training_data=describe_data(train_data, validation_data),
            seed=seed,
            epochs=settings.epochs,
            recipe=recorded,
            versions=package_versions(),
            notes=loss.notes,
        ),
    )
    # Whatever may change the weights; a resumed run must have been started with the same.
    identity = {k: str(v) for k, v in recorded.items()} | {
        "recipe": loss.name,
        "seed": str(seed),
        "threat_model": threat.identity,
        "architecture": f"{spec.name} {sorted(spec.arguments.items())}",
        "train_data": train_data.fingerprint,
        "validation_data": validation_data.fingerprint,
    }
    trainer = Trainer(
        recipe=loss,
        settings=settings,
        threat_model=threat,
        network=network,
        train_data=train_data,
        validation_data=validation_data,
        seed=seed,
        folder=folder,
        identity=identity,
        teacher=guide,
    )
    ensure_writable(folder)
    shown = progress and devices == 1
    work = partial(_work, trainer, card, f"{loss.name} on {train_data.name}", shown)
    launch(work, chosen, devices)
    return folder / "card.toml"


def _work(trainer: Trainer, card: ModelCard, title: str, shown: bool, engine: Engine) -> None:
    """One process's part. Module-level, so that it can be sent to a spawned process."""
    try:
        if shown:
            with TrainingProgress(title) as bar:
                trainer.progress = bar
                best = trainer.fit(engine)
        else:
            best = trainer.fit(engine)
    except TrainingError as error:
        state = TrainingState.load(trainer.folder, trainer.identity)
        if engine.rank == 0 and state is not None and state.best is not None:
            # The last good weights stay usable, and their card says what happened.
            export_model(card, state.best, trainer.folder, note=f"Training stopped: {error.what}.")
        raise
    if engine.rank == 0:
        export_model(card, best, trainer.folder)
        TrainingState.clear(trainer.folder)


def _card(**fields: Any) -> ModelCard:
    try:
        return ModelCard(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"no card can have {field} = {first['input']!r}: {first['msg']}",
            hint="Names have letters, digits, '.', '_', '+' and '-'",
        ) from error


def _configure(
    recipe: str | Recipe, defaults: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Recipe, TrainingSettings]:
    kind: type[Recipe] = RECIPES[recipe] if isinstance(recipe, str) else type(recipe)
    own, common = set(kind.model_fields), set(TrainingSettings.model_fields)
    for key in overrides:
        if key not in own | common:
            raise unknown_name(f"training setting of {kind.name}", key, sorted(own | common))
    mine = {k: v for k, v in overrides.items() if k in own}
    if isinstance(recipe, Recipe):
        mine = {**recipe.model_dump(), **mine}
    shared = {k: v for k, v in overrides.items() if k in common}
    merged = {**defaults, **kind.suggested, **shared}
    return _validated(kind, mine), _validated(TrainingSettings, merged)


def _validated(kind: type[_Model], values: Mapping[str, Any]) -> _Model:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(f"{field} = {first['input']!r}: {first['msg']}") from error


def _splits(
    dataset: str | Path | Dataset,
    validation: Dataset | None,
    root: str | Path | None,
    download: bool,
    options: dict[str, Any],
) -> tuple[Dataset, Dataset]:
    if not isinstance(dataset, Dataset):
        if validation is not None:
            raise UsageError(
                "validation goes with a data set object", hint="Give both, or a name alone"
            )
        return load_training_splits(dataset, root=root, download=download, **options)
    if validation is None:
        raise UsageError(
            "a validation set is needed to choose the checkpoint",
            hint="Part the training data with robench.datasets.hold_out",
        )
    if set(dataset.sample_ids) & set(validation.sample_ids):
        raise UsageError("training and validation data share samples")
    if (dataset.num_classes, dataset.input_shape) != (
        validation.num_classes,
        validation.input_shape,
    ):
        raise UsageError("training and validation data differ in classes or input shape")
    return dataset, validation


def _threat(value: str | ThreatModel) -> ThreatModel:
    return value if isinstance(value, ThreatModel) else ThreatModel.parse(value)


def _architecture(
    value: str | ArchitectureSpec | None, defaults: Defaults, dataset: str
) -> ArchitectureSpec:
    if value is None:
        if defaults.architecture is None:
            raise UsageError(
                f"no architecture is the default for {dataset!r}", hint="Choose one with --arch"
            )
        return ArchitectureSpec(name=defaults.architecture, arguments=dict(defaults.arguments))
    return value if isinstance(value, ArchitectureSpec) else ArchitectureSpec(name=value)


def _prepare(folder: Path, overwrite: bool) -> None:
    card = folder / "card.toml"
    if overwrite:
        # The card first: without it the folder is no model.
        card.unlink(missing_ok=True)
        TrainingState.clear(folder)
    elif card.exists() and not (folder / STATE_FILE).exists():
        raise UsageError(
            "the folder holds a finished model",
            where=folder,
            hint="Choose another folder with --out, or replace it with --overwrite",
        )


def _teacher(
    recipe: Recipe,
    teacher: str | Path | None,
    dataset: str,
    threat: ThreatModel,
    spec: ArchitectureSpec,
) -> RobenchModel | None:
    if not recipe.needs_teacher:
        if teacher is not None:
            raise UsageError(f"recipe {recipe.name!r} takes no teacher")
        return None
    if teacher is None:
        raise TrainingError(
            f"recipe {recipe.name!r} learns from a teacher and none is given",
            hint=f"Make one: robench train standard --dataset {dataset} --arch {spec.name} "
            f"--threat-model {threat}; then add --teacher {dataset}/{threat.slug}/standard",
        )
    # Only such recipes read a finished model.
    from robench.models import load_model

    model: RobenchModel = load_model(teacher)
    return model


def _start_from(network: nn.Module, teacher: nn.Module) -> None:
    """Give the student the teacher's weights, as the recipes with a teacher do."""
    try:
        network.load_state_dict(teacher.state_dict())
    except RuntimeError as error:
        raise TrainingError(
            f"the teacher is a {type(teacher).__name__} of other shape than the student",
            hint="Train a teacher of the same architecture",
        ) from error


def _attention(network: nn.Module) -> AttentionSpec:
    """Rollout for networks whose attention weights can be read, else Grad-CAM."""
    readable = any(getattr(module, "exposes_attention", False) for module in network.modules())
    return AttentionSpec(method="rollout" if readable else "grad_cam")
