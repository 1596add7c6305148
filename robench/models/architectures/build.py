"""From an architecture's name and arguments to a module without trained weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from torch import nn

from robench.errors import (
    CardError,
    MissingDependencyError,
    ModelError,
    UnknownNameError,
    one_line,
)
from robench.models.architectures import transformers_library
from robench.models.catalogue import ARCHITECTURES
from robench.records import ArchitectureSpec
from robench.registry import import_target, near_misses, unknown_name

_LARGEST: Final = 2**16
"""Of whole numbers among the arguments: no width, depth or size of a network is larger, and one that is
keeps the builder busy until memory ends."""

# These make one of LIBRARIES fetch or unpickle files by itself, past the hash check of the card.
_FORBIDDEN: Final = {
    "torchvision": {"weights", "weights_backbone"},
    "timm": {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"},
    "transformers": transformers_library.FORBIDDEN,
}


def foreign_builder(spec: ArchitectureSpec) -> object | None:
    """What builds the network, if its code is from outside: the numbers depend on it.

    Returns:
        None for robench's own networks and those of torchvision, timm and transformers, which compute
        the same function in all their versions.

    Raises:
        UnknownNameError, UsageError: as for :func:`build_architecture`.
    """
    library, colon, _ = spec.name.partition(":")
    if colon:
        return None if library in _FORBIDDEN else import_target(spec.name)
    builder = ARCHITECTURES[spec.name]
    return None if builder.__module__.partition(".")[0] == "robench" else builder


def build_architecture(spec: ArchitectureSpec, num_classes: int, in_channels: int) -> nn.Module:
    """Build the network that ``spec`` names, with fresh random weights.

    Args:
        spec: a registered name, ``torchvision:NAME``, ``timm:NAME``, ``transformers:TYPE`` or
            ``package.module:callable``, with arguments. The two sizes below are passed to a
            foreign callable only where it has parameters of that name.
        num_classes: number of logits.
        in_channels: channels of the input.

    Raises:
        UnknownNameError: no such architecture; near misses are listed.
        UsageError: a ``package.module:callable`` that cannot be imported.
        CardError: arguments that the architecture does not take.
        MissingDependencyError: the library that holds it is not installed.
        ModelError: the callable fails or does not return an ``nn.Module``.
    """
    library, colon, name = spec.name.partition(":")
    sizes: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    if not colon:
        return _call(ARCHITECTURES[spec.name], spec, sizes, strict=True)
    if forbidden := _FORBIDDEN.get(library, set()) & spec.arguments.keys():
        raise CardError(
            f"{' and '.join(sorted(forbidden))} would load other weights than the card's",
            where=f"architecture.arguments of {spec.name}",
            hint="Leave it out and name the file under weights",
        )
    if library == "timm":
        sizes = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
        return _call(_timm_builder(name), spec, sizes, strict=True)
    if library == "transformers":
        sizes = {"num_labels": num_classes, "num_channels": in_channels}
        build = transformers_library.transformers_builder(name)
        return _call(build, spec, sizes, strict=True)
    if library == "torchvision":
        if in_channels != 3:
            raise CardError(
                f"torchvision's networks take 3 channels, not {in_channels}",
                where=spec.name,
                hint="Use timm:NAME or an own package.module:callable",
            )
        sizes = {"weights": None, "num_classes": num_classes}
        return _call(_torchvision_builder(name), spec, sizes, strict=False)
    target = import_target(spec.name)
    if not callable(target):
        raise ModelError("is not callable", where=spec.name)
    return _call(target, spec, sizes, strict=False)


def _torchvision_builder(name: str) -> Callable[..., Any]:
    try:
        # Imported here because it takes a second and only such cards need it.
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        # A torchvision that does not match torch fails with a RuntimeError about its operators.
        raise _missing("torchvision", name, error) from error
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision architecture", name, known)
    builder: Callable[..., Any] = models.get_model_builder(name)
    return builder


def _timm_builder(name: str) -> Callable[..., Any]:
    try:
        # Optional, and slow to import.
        import timm
    except ImportError as error:
        raise _missing("timm", name, error) from error
    # Membership in the list also refuses "hf-hub:..." names, which would download.
    if not timm.is_model(name):
        raise unknown_name("timm architecture", name, timm.list_models())
    return partial(timm.create_model, name)


def _missing(library: str, name: str, error: Exception) -> MissingDependencyError:
    return MissingDependencyError(
        f"{library} cannot be imported: {error}",
        where=f"{library}:{name}",
        hint=f"pip install {library}",
    )


def _call(
    builder: Callable[..., Any], spec: ArchitectureSpec, sizes: dict[str, Any], *, strict: bool
) -> nn.Module:
    """Call ``builder`` with the card's arguments and those of ``sizes`` that it can take."""
    parameters: Mapping[str, inspect.Parameter] = {}
    takes_any = False
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):  # Some C callables have no signature.
        takes_any = True
    takes_any |= any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [a for a in spec.arguments if not takes_any and a not in parameters]
    if unknown:
        names = [p for p in parameters if p not in ("self", "num_classes", "in_channels")]
        close = near_misses(unknown[0], names)
        known = f"It takes: {', '.join(names) or 'none'}"
        hint = f"Did you mean {close[0]!r}?" if close else known
        raise CardError(f"takes no argument {unknown[0]!r}", where=spec.name, hint=hint)
    clash = [size for size in sizes if strict and size in spec.arguments]
    if clash:
        raise CardError(
            f"{clash[0]} belongs to the card itself, not to the architecture's arguments",
            where=spec.name,
        )
    if not spec.imports_code:
        _check_numbers(spec, parameters)
    accepted = {k: v for k, v in sizes.items() if takes_any or k in parameters}
    try:
        network = builder(**{**accepted, **spec.arguments})
    except (UnknownNameError, CardError):
        raise
    except (Exception, SystemExit) as error:  # Foreign code may raise anything.
        raise ModelError(
            f"cannot be built: {type(error).__name__}: {one_line(error)}",
            where=spec.name,
            hint="Check architecture.arguments",
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"returns {type(network).__name__}, not an nn.Module", where=spec.name)
    return network


def _check_numbers(spec: ArchitectureSpec, parameters: Mapping[str, inspect.Parameter]) -> None:
    for name, value in spec.arguments.items():
        given = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, int) and abs(item) > _LARGEST for item in given):
            raise CardError(
                f"{name} = {value!r}: no network has a whole number beyond {_LARGEST}",
                where=spec.name,
            )
        whole = name in parameters and parameters[name].annotation in (int, "int")
        if whole and isinstance(value, bool):
            raise CardError(f"{name} = {value!r} is not a whole number", where=spec.name)
