"""A training job: all that decides the weights, settled before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench import seeding
from robench.defenses.catalogue import RECIPES
from robench.defenses.computation import chosen_precision
from robench.defenses.recipe import Recipe
from robench.defenses.settings import Defaults, TrainingSettings, defaults_for
from robench.defenses.training_data import TrainingSplits
from robench.devices import resolve_device
from robench.errors import TrainingError, UsageError
from robench.files import expanded
from robench.models import load_model
from robench.models.architectures.build import build_architecture
from robench.models.wrapper import RobenchModel
from robench.records import ArchitectureSpec, parse
from robench.registry import identity_of, unknown_name
from robench.threat_models import ThreatModel


@dataclass(frozen=True)
class TrainingJob:
    """One network to be trained; the same job gives the same weights on the same machine.

    Its fields are the arguments of :func:`resolve`, settled, and:

    Args:
        network: of the architecture, with its initial weights, on the CPU.
        recipe_source, teacher_source: how the command line names them; None: it cannot.
        code: what the recipe's class is, if it is from outside (``registry.identity_of``).
    """

    recipe: Recipe
    settings: TrainingSettings
    data: TrainingSplits
    threat_model: ThreatModel
    architecture: ArchitectureSpec
    network: nn.Module
    name: str
    folder: Path
    seed: int
    device: torch.device
    devices: int
    teacher: RobenchModel | None
    recipe_source: str | None
    teacher_source: str | None
    code: str | None

    @property
    def recorded(self) -> dict[str, Any]:
        """Every setting by name, as the card has them."""
        found = {
            **self.settings.model_dump(mode="json"),
            **self.recipe.model_dump(mode="json"),
            "precision": chosen_precision(self.device, self.settings.precision),
            "devices": self.devices,
            "device": self.device.type,
        }
        if self.teacher is not None:
            found["teacher"] = self.teacher.summary.id
            found["teacher_sha256"] = self.teacher.summary.weights_sha256
        return found

    @property
    def identity(self) -> dict[str, str]:
        """Whatever may change the weights, as text; a resumed run must have the same."""
        return {name: str(value) for name, value in self.recorded.items()} | {
            "recipe": self.code or self.recipe.name,
            "seed": str(self.seed),
            "threat_model": self.threat_model.identity,
            "architecture": f"{self.architecture.name} {sorted(self.architecture.arguments.items())}",
            "train_data": self.data.train.fingerprint,
            "validation_data": self.data.validation.fingerprint,
        }


def resolve(
    recipe: str | Recipe,
    data: str | Path | TrainingSplits,
    *,
    architecture: str | ArchitectureSpec | None = None,
    threat_model: str | ThreatModel | None = None,
    folder: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    teacher: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainingJob:
    """The job that these few words mean, checked. Writes nothing.

    Args:
        recipe: a name of ``RECIPES``, ``package.module:Class``, or a recipe with its parameters.
        data: a name, folder or file for :meth:`TrainingSplits.load`, or what that returns.
        architecture: name or specification; default: the data set's.
        threat_model: ``"Linf-8/255"``; default: the data set's.
        folder: where the model, and until then the state of the run, is written; default
            ``model_zoo/<dataset>/<threat>/<name>``.
        name: the model's name; default: the recipe's.
        seed: keys every random choice.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        devices: how many of them; several need Lightning Fabric.
        teacher: a model's id or card, for recipes that learn from one.
        settings: fields of :class:`TrainingSettings` (``epochs``, ``lr``, …) and of the recipe.

    Raises:
        UnknownNameError: an unknown recipe, architecture, data set or setting.
        UsageError: a bad value.
        TrainingError: a teacher is missing, or the data is too small.
        ModelError: the architecture lacks what the recipe needs.
        DeviceError: the device is not there.
    """
    where = resolve_device(device)
    if devices < 1:
        raise UsageError(f"devices must be at least 1, got {devices}")
    splits = data if isinstance(data, TrainingSplits) else TrainingSplits.load(data)
    dataset = splits.train.name
    defaults = defaults_for(dataset)
    loss, common = _configured(recipe, defaults.settings, settings or {})
    if len(splits.train) < common.batch_size:
        raise TrainingError(
            f"{len(splits.train)} training samples do not fill a batch of {common.batch_size}",
            where=f"{dataset} ({splits.train.split})",
            hint=f"Choose a batch size up to {len(splits.train)}",
        )
    if where.type == "cpu" and not common.threads:
        # Spelled out, so that the recorded command gives the same bits elsewhere.
        common = common.model_copy(update={"threads": torch.get_num_threads()})
    threat = ThreatModel.parse(threat_model or defaults.threat_model)
    spec = _architecture(architecture, defaults, dataset)
    guide = _teacher(loss, teacher, dataset, spec, threat)
    return TrainingJob(
        recipe=loss,
        settings=common,
        data=splits,
        threat_model=threat,
        architecture=spec,
        network=_initial_network(spec, splits, seed, loss, guide),
        name=name or loss.name,
        folder=expanded(folder or Path("model_zoo", dataset, threat.slug, name or loss.name)),
        seed=seed,
        device=where,
        devices=devices,
        teacher=guide,
        recipe_source=recipe if isinstance(recipe, str) else None,
        teacher_source=None if teacher is None else str(teacher),
        code=identity_of(type(loss)),
    )


def _configured(
    recipe: str | Recipe, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[Recipe, TrainingSettings]:
    # Whoever trains with a recipe written out as package.module:Class has chosen to run it.
    kind = RECIPES.find(recipe, trust_code=True) if isinstance(recipe, str) else type(recipe)
    if not issubclass(kind, Recipe):
        raise UsageError(f"{recipe!r} is no recipe", hint="Derive it from robench.defenses.Recipe")
    own, common = set(kind.model_fields), set(TrainingSettings.model_fields)
    for key in given:
        if key not in own | common:
            raise unknown_name(f"training setting of {kind.name}", key, sorted(own | common))
    parameters = recipe.model_dump() if isinstance(recipe, Recipe) else {}
    parameters |= {k: v for k, v in given.items() if k in own}
    shared = {**defaults, **{k: v for k, v in given.items() if k in common}}
    return parse(kind, parameters, UsageError), parse(TrainingSettings, shared, UsageError)


def _architecture(
    value: str | ArchitectureSpec | None, defaults: Defaults, dataset: str
) -> ArchitectureSpec:
    if isinstance(value, ArchitectureSpec):
        return value
    if value is not None:
        return ArchitectureSpec(name=value)
    if defaults.architecture is None:
        raise UsageError(
            f"no architecture is the default for {dataset!r}", hint="Choose one with --arch"
        )
    return ArchitectureSpec(name=defaults.architecture, arguments=dict(defaults.arguments))


def _teacher(
    recipe: Recipe,
    teacher: str | Path | None,
    dataset: str,
    spec: ArchitectureSpec,
    threat: ThreatModel,
) -> RobenchModel | None:
    if recipe.needs_teacher and teacher is None:
        raise TrainingError(
            f"recipe {recipe.name!r} learns from a teacher and none is given",
            hint=f"Make one: robench train standard --dataset {dataset} --arch {spec.name} "
            f"--threat-model {threat}; then add --teacher {dataset}/{threat.slug}/standard",
        )
    if teacher is not None and not recipe.needs_teacher:
        raise UsageError(f"recipe {recipe.name!r} takes no teacher")
    return None if teacher is None else load_model(teacher)


def _initial_network(
    spec: ArchitectureSpec,
    data: TrainingSplits,
    seed: int,
    recipe: Recipe,
    teacher: RobenchModel | None,
) -> nn.Module:
    """Random weights keyed by ``seed``, or the teacher's, as the recipes with a teacher start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.tag(f"initial weights {seed}"))
        network = build_architecture(spec, data.train.num_classes, data.train.input_shape[0])
    recipe.check(network, data.probe, data.train.num_classes)
    if teacher is not None:
        try:
            network.load_state_dict(teacher.network.state_dict())
        except RuntimeError as error:
            raise TrainingError(
                f"the teacher is a {type(teacher.network).__name__} of other shape than the student",
                hint="Train a teacher of the same architecture",
            ) from error
    return network
