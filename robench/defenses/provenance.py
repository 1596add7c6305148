"""What a card says about how its weights came to be."""

from __future__ import annotations

import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from robench.datasets import Dataset
from robench.defenses.recipe import Recipe
from robench.defenses.settings import TrainingSettings
from robench.records import ArchitectureSpec
from robench.threat_models import ThreatModel

__all__ = ["command_line", "describe_data", "package_versions"]

_PACKAGES = ("robench", "torch", "numpy", "scikit-learn")


def command_line(
    recipe: Recipe,
    settings: TrainingSettings,
    *,
    dataset: str,
    architecture: ArchitectureSpec,
    threat_model: ThreatModel,
    seed: int,
    name: str | None,
    teacher: str | Path | None,
) -> str:
    """The command that trains this again, every value away from its default spelled out.

    The defaults meant are those of the classes; what a data set prefers is spelled out too, so
    that the command outlives a change of preferences.
    """
    options: list[tuple[str, object]] = [("--dataset", dataset), ("--arch", architecture.name)]
    options += [("--arch-arg", f"{k}={v}") for k, v in architecture.arguments.items()]
    options += [
        ("--threat-model", threat_model),
        ("--epochs", settings.epochs),
        ("--seed", seed),
    ]
    if name is not None:
        options.append(("--name", name))
    if teacher is not None:
        options.append(("--teacher", teacher))
    for model in (settings, recipe):
        for key, info in type(model).model_fields.items():
            value = getattr(model, key)
            if key != "epochs" and value != info.default:
                options.append(("--set", f"{key}={_spelled(value)}"))
    words = ["robench", "train", recipe.name]
    for flag, value in options:
        words += [flag, str(value)]
    return shlex.join(words)


def describe_data(*parts: Dataset) -> str:
    """Name, size and fingerprint of each part."""
    return "; ".join(
        f"{part.name} {part.split}, n = {len(part)}, sha256 {part.fingerprint}" for part in parts
    )


def package_versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            # Run from a source tree that is not installed.
            continue
    return found


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
