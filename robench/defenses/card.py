"""The card of a trained model: how its weights came to be, what they reached on validation."""

import hashlib
import platform
import shlex
from pathlib import Path

from safetensors.torch import save

from robench.defenses.job import TrainingJob
from robench.defenses.training_state import Best
from robench.errors import UsageError
from robench.files import atomic_write
from robench.formatting import rounded
from robench.models.cards import write_card
from robench.models.zoo_folders import CARD_NAME
from robench.records import AttentionSpec, InputSpec, ModelCard, Provenance, WeightsSpec, parse
from robench.registry import installed_versions
from robench.trust import trust

_WEIGHTS_NAME = "weights.safetensors"

_PACKAGES = ("robench", "torch", "numpy", "scikit-learn")
"""Their versions decide the numbers."""


def draft_card(job: TrainingJob) -> ModelCard:
    """The card before training, complete but for the weights' hash and the validation figures.

    Raises:
        UsageError: no card can have such a name.
    """
    recipe, paper = job.recipe, job.recipe.paper
    train = job.data.train
    versions = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **installed_versions(*_PACKAGES),
    }
    if job.code is not None:
        versions["recipe"] = job.code
    # Where attention weights can be read, rollout; else Grad-CAM.
    readable = any(getattr(module, "exposes_attention", False) for module in job.network.modules())
    fields = {
        "name": job.name,
        "dataset": train.name,
        "num_classes": train.num_classes,
        "threat_model": job.threat_model,
        "defense": recipe.name,
        "architecture": job.architecture,
        "weights": WeightsSpec(path=_WEIGHTS_NAME, sha256="0" * 64),
        "input": InputSpec(channels=train.input_shape[0]),
        "forward": recipe.forward_spec(job.network, job.data.probe),
        "attention": AttentionSpec(method="rollout" if readable else "grad_cam"),
        "provenance": Provenance(
            paper=paper and paper.title,
            link=paper and paper.link,
            venue=paper and paper.venue,
            year=paper and paper.year,
            command=_command(job),
            training_data="; ".join(
                f"{part.name} {part.split}, n = {len(part)}, sha256 {part.fingerprint}"
                for part in (job.data.train, job.data.validation)
            ),
            seed=job.seed,
            epochs=job.settings.epochs,
            recipe=job.recorded,
            versions=versions,
            notes=recipe.notes,
        ),
    }
    hint = "Names have letters, digits, '.', '_', '+' and '-'"
    return parse(ModelCard, fields, UsageError, hint=hint)


def write_model(card: ModelCard, best: Best, folder: Path, *, note: str | None = None) -> None:
    """Write ``weights.safetensors`` and ``card.toml``; the card last, as it makes the model.

    The ``card`` is the draft, to whose notes ``note`` is added.

    Raises:
        StoreError: the folder cannot be written.
    """
    content = save(best.weights)
    atomic_write(folder / _WEIGHTS_NAME, content)
    origin = card.provenance
    figures = {name: rounded(best.figures[name], 2) for name in ("clean_acc", "robust_acc")}
    notes = " ".join(part for part in (origin.notes, note) if part) or None
    update = {
        "weights": card.weights.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()}),
        "provenance": origin.model_copy(
            update={"validation": {**figures, "epoch": float(best.epoch)}, "notes": notes}
        ),
    }
    path = write_card(card.model_copy(update=update), folder / CARD_NAME)
    if card.architecture.names_code:
        trust(path)  # whoever trains it has just named the code


def _command(job: TrainingJob) -> str | None:
    """The command that trains this again, every value away from its default spelled out.

    The defaults meant are those of the classes; what a data set prefers is spelled out too, so
    that the command outlives a change of preferences. None where no command can.
    """
    if job.recipe_source is None or job.data.source is None:
        return None
    options: list[tuple[str, object]] = [
        ("--dataset", job.data.source),
        ("--arch", job.architecture.name),
        *(("--arch-arg", f"{k}={v}") for k, v in job.architecture.arguments.items()),
        ("--threat-model", job.threat_model),
        ("--epochs", job.settings.epochs),
        ("--seed", job.seed),
    ]
    if job.name != job.recipe.name:
        options.append(("--name", job.name))
    if job.teacher_source is not None:
        options.append(("--teacher", job.teacher_source))
    for model in (job.settings, job.recipe):
        for key, info in type(model).model_fields.items():
            value = getattr(model, key)
            if key != "epochs" and value != info.default:
                options.append(("--set", f"{key}={_spelled(value)}"))
    words = ["robench", "train", job.recipe_source]
    for flag, value in options:
        words += [flag, str(value)]
    return shlex.join(words)


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
