"""Image classifiers of the package ``transformers``, from a configuration, without their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from logging import CRITICAL
from typing import Any, Final

import torch
from torch import Tensor, nn

from robench.errors import CardError, MissingDependencyError, one_line
from robench.registry import near_misses, unknown_name

FORBIDDEN: Final = frozenset(
    {"auto_map", "backbone", "quantization_config", "trust_remote_code", "use_pretrained_backbone"}
)
"""Arguments that fetch or run what the card does not name"""

_OF_SAVING: Final = frozenset(
    {"id2label", "label2id", "num_labels", "return_dict", "dtype", "model_type"}
)
"""Fields of a configuration that the card itself decides, or that concern how it was saved"""


def transformers_builder(model_type: str) -> Callable[..., nn.Module]:
    """What builds the image classifier of a type (``vit``, ``swin``, ``resnet``) from fields of its
    configuration.

    Raises:
        MissingDependencyError: ``transformers`` is not installed.
        UnknownNameError: it has no image classifier of this type.
    """
    return partial(_build, model_type, _configuration(model_type))


def configuration_fields(model_type: str, saved: dict[str, Any]) -> dict[str, Any]:
    """Of a saved configuration the fields that make the network, as a card's arguments have them.

    Raises:
        CardError: a field is null where the network's default is another.
        MissingDependencyError, UnknownNameError: as :func:`transformers_builder`.
    """
    known = _known(_configuration(model_type))
    found = {name: saved[name] for name in sorted(saved.keys() & known.keys() - _OF_SAVING)}
    for name, value in found.items():
        if value is None and known[name] is not None:
            raise CardError(
                f"{name} is null, which no card can say", where=f"transformers:{model_type}"
            )
    if architectures := saved.get("architectures"):
        found["architectures"] = architectures
    return {
        name: value for name, value in found.items() if value is not None and name not in FORBIDDEN
    }


def _configuration(model_type: str) -> Any:
    """The class of a type's configurations."""
    try:
        # Optional, and slow to import.
        from transformers import CONFIG_MAPPING

        # The mapping itself would import the configurations of all types.
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN,
        )
    except ImportError as error:
        raise MissingDependencyError(
            f"transformers cannot be imported: {one_line(error)}",
            where=f"transformers:{model_type}",
            hint="pip install transformers",
        ) from error
    if model_type not in KNOWN:
        raise unknown_name("image classifier of transformers", model_type, sorted(KNOWN))
    return CONFIG_MAPPING[model_type]


def _known(configuration: Any) -> dict[str, Any]:
    fields: dict[str, Any] = configuration().to_dict()
    return fields


def _build(model_type: str, configuration: Any, /, **arguments: Any) -> nn.Module:
    from transformers import AutoModelForImageClassification

    known = {*_known(configuration), "architectures", "num_labels"}
    # A configuration takes any name, and the network of a misspelt one would be another.
    if unknown := sorted(arguments.keys() - known):
        close = near_misses(unknown[0], sorted(known))
        raise CardError(
            f"takes no argument {unknown[0]!r}",
            where=f"transformers:{model_type}",
            hint=f"Did you mean {close[0]!r}?" if close else "See its configuration's fields",
        )
    classifiers: Any = AutoModelForImageClassification  # which has no types
    with _as_it_was(nn.Module):
        network: nn.Module = classifiers.from_config(configuration(**arguments))
    return network.eval()


def in_own_names(
    network: nn.Module, tensors: Mapping[str, Tensor], prefix: str = ""
) -> dict[str, Tensor]:
    """Tensors of a file by the names that ``network`` has for them.

    Files keep the names of the version that a network was published with, and transformers knows what has
    become of them. What it does not know keeps its name, as does all of other networks.

    Args:
        network: of transformers, or any other.
        tensors: those of the file.
        prefix: of its names there, which stays.
    """
    if type(network).__module__.partition(".")[0] != "transformers":
        return dict(tensors)
    inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    kind: Any = type(network)
    with _quiet(), _as_it_was(nn.Module):
        loaded, seen = kind.from_pretrained(
            None,
            config=network.config,
            state_dict=dict(inner),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if seen["mismatched_keys"]:  # whoever loads strictly says which
        return dict(tensors)
    unknown = {name: inner[name] for name in seen["unexpected_keys"] if name in inner}
    known = {n: t for n, t in loaded.state_dict().items() if n not in seen["missing_keys"]}
    others = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
    return others | {prefix + name: tensor for name, tensor in {**known, **unknown}.items()}


@contextmanager
def _as_it_was(kind: type) -> Iterator[None]:
    """Takes away what is put on a class of torch's inside: no other network's code should hold it."""
    before = set(vars(kind))
    try:
        yield
    finally:
        for name in set(vars(kind)) - before:
            delattr(kind, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and tables that transformers shows of what it loads."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
