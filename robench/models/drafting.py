"""A card for a weights file that came without one, and where its state dict is."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from robench.errors import CardError, CheckpointError
from robench.models.architectures.build import build_architecture
from robench.models.architectures.transformers_library import in_own_names
from robench.models.checkpoints import (
    checkpoint_sha256,
    detect_format,
    read_checkpoint,
)
from robench.models.state_dicts import WRAPPER_PREFIXES, inner_name, is_counter, with_names
from robench.records import (
    PROGRAM,
    ArchitectureSpec,
    ForwardSpec,
    InputSpec,
    ModelCard,
    PreprocessingSpec,
    parse,
)
from robench.threat_models import ThreatModel

_AVERAGES: Final = frozenset({"ema", "swa", "avg", "average", "averaged", "polyak"})
"""Words in the key of weights that were averaged over training"""

# In order of preference. Averaged weights come last: which of the two a paper evaluates is the
# user's to say.
_USUAL_KEYS: Final = (
    *("", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params"),
    *("weights", "last", "best", "module", "state_dict_ema", "model_ema", "ema"),
)


def find_state_dicts(content: Any) -> dict[str | None, Mapping[str, Tensor]]:
    """State dicts in what a file holds, under any key at most three levels down.

    Returns:
        dotted path → the named tensors there, the likeliest first; None: the content itself.
    """
    found = sorted(_state_dicts(content), key=_unlikeliness)
    return {key or None: tensors for key, tensors in found}


def _state_dicts(
    value: Any, key: str = "", depth: int = 3
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not key:
        value = with_names(value)
    if not isinstance(value, Mapping) or not value:
        return
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        yield key, value
    elif depth:
        for name, inner in value.items():
            if isinstance(name, str):
                yield from _state_dicts(inner, f"{key}.{name}" if key else name, depth - 1)


def _unlikeliness(found: tuple[str, Mapping[str, Tensor]]) -> tuple[int, int, int]:
    key, tensors = found
    last = key.rpartition(".")[2].casefold()
    place = _USUAL_KEYS.index(last) if last in _USUAL_KEYS else len(_USUAL_KEYS)
    return place, key.count("."), -sum(tensor.numel() for tensor in tensors.values())


def _describe(value: Any) -> str:
    if isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 40 else text[:39] + "…"
    if isinstance(value, Mapping):
        return f"dict of {len(value)}"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    return type(value).__name__


def matching_prefix(network: nn.Module, names: Mapping[str, object]) -> str | None:
    """The prefix without which the names are the network's; None if there is none.

    A prefix such as ``model.`` may belong to the network's own names, which only the network
    can tell. Names that do not have it are those of further modules, if it is the only one.

    Raises:
        CheckpointError: the network is there under several prefixes, with different weights.
    """
    wanted = set(network.state_dict())
    fitting: list[str] = []
    for prefix in _growing_prefixes(names):
        own = {inner_name(n.removeprefix(prefix), wanted) for n in names if n.startswith(prefix)}
        if own == wanted:
            fitting.append(prefix)
            if all(name.startswith(prefix) for name in names):
                return prefix
    first = fitting[0] if fitting else None
    if first and all(name in names for name in wanted if not is_counter(name)):
        fitting.append("")  # plain names, beside those with a prefix
        wanted = {name for name in wanted if name in names}
    for other in fitting[1:]:
        if any(not _equal(names, f"{first}{name}", f"{other}{name}") for name in wanted):
            raise CheckpointError(
                f"holds the network several times, under {' and '.join(repr(p) if p else 'no prefix' for p in fitting)}",
                hint="Name one: --weights strip_prefix=…; prefix= in Python; weights.strip_prefix in a "
                "card",
            )
    return first


def _equal(
    names: Mapping[str, object], one: str, other: str, further: Mapping[str, object] | None = None
) -> bool:
    first, second = names.get(one), (names if further is None else further).get(other)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return False


def _growing_prefixes(names: Mapping[str, object]) -> Iterator[str]:
    """``""``, then ever longer chains of wrapper prefixes that some names begin with."""
    waiting = deque([""])
    while waiting and names:
        prefix = waiting.popleft()
        yield prefix
        waiting += [
            prefix + p for p in WRAPPER_PREFIXES if any(n.startswith(prefix + p) for n in names)
        ]


def draft_card(
    path: str | os.PathLike[str],
    architecture: str | ArchitectureSpec,
    *,
    num_classes: int,
    dataset: str = "custom",
    threat_model: ThreatModel | str = "Linf-8/255",
    name: str | None = None,
    defense: str = "unknown",
    input: InputSpec | None = None,
    forward: ForwardSpec | None = None,
    preprocessing: PreprocessingSpec | None = None,
    key: str | None = None,
    prefix: str | None = None,
    trust_pickle: bool = False,
) -> ModelCard:
    """A card for a weights file that has none, with the state dict's place and prefix guessed.

    Args:
        path: the weights file.
        architecture: as in a card, or ``program`` for TorchScript and ``torch.export`` files.
        num_classes: number of logits.
        dataset: name of the data set that it classifies.
        threat_model: what it is evaluated under unless told otherwise.
        name: the card's name; None: the file's.
        defense: recipe's name.
        input: range and normalisation; None: [0, 1] as it is.
        forward: arguments and output path; None: ``logits`` of a network of transformers, else the output.
        preprocessing: how images of other sizes are prepared for it.
        key: place of the state dict; None: guessed.
        prefix: prefix to strip; None: guessed, with the architecture's own names as the judge.
        trust_pickle: execute the code that the file carries.

    Raises:
        CardError: a field has a wrong value.
        CheckpointError: the file cannot be read, holds no state dict, or the network several times.
    """
    path = Path(path)
    spec = ArchitectureSpec(name=architecture) if isinstance(architecture, str) else architecture
    input = input or InputSpec()
    if detect_format(path).is_program:
        spec = ArchitectureSpec(name=PROGRAM)
    elif spec.name != PROGRAM:
        content = read_checkpoint(path, trust_pickle=trust_pickle)
        found = _state_dicts_at(key, content, path)
        network = build_architecture(spec, num_classes, input.channels)
        key, prefix = _fitting(network, found, prefix, path)
    card = {
        "name": name
        or re.sub(r"[^\w.+-]+", "-", path.stem, flags=re.ASCII).strip("-._+")[:100]
        or "model",
        "dataset": dataset,
        "num_classes": num_classes,
        "threat_model": ThreatModel.parse(threat_model),
        "defense": defense,
        "architecture": spec,
        "weights": {
            "path": str(path.resolve()),
            "sha256": checkpoint_sha256(path),
            "key": key,
            "strip_prefix": prefix or "",
        },
        "input": input,
        "forward": _forward(spec, forward or ForwardSpec()),
        "preprocessing": preprocessing,
    }
    return parse(ModelCard, card, CardError, where=path)


def _forward(architecture: ArchitectureSpec, asked: ForwardSpec) -> ForwardSpec:
    """What was asked for; of transformers, whose networks give several things by name, the logits."""
    if asked.output or not architecture.name.startswith("transformers:"):
        return asked
    return asked.model_copy(update={"output": ("logits",)})


def _state_dicts_at(
    key: str | None, content: Any, path: Path
) -> dict[str | None, Mapping[str, Tensor]]:
    """The state dict at ``key``; of None all, at least one."""
    found = find_state_dicts(content)
    if not found:
        parts = with_names(content)
        parts = parts if isinstance(parts, Mapping) else {"the file": content}
        held = ", ".join(f"{name}: {_describe(part)}" for name, part in list(parts.items())[:8])
        raise CheckpointError(
            "holds no state dict" + (f", only {held}" if held else ""), where=path
        )
    if key is None:
        return found
    if key not in found:
        raise CheckpointError(
            f"has no state dict at key {key!r}",
            where=path,
            hint=f"It has one at: {', '.join(repr(place or '') for place in found)}",
        )
    return {key: found[key]}


def _fitting(
    network: nn.Module,
    found: Mapping[str | None, Mapping[str, Tensor]],
    prefix: str | None,
    where: object,
) -> tuple[str | None, str]:
    """Key and prefix of the state dict that is the network's; averages come after plain weights."""
    fits = _fits(network, found, prefix)
    if fits:
        likely = [key for key in fits if not _is_average(key)] or list(fits)
        first = likely[0]
        others = [key for key in likely if not _same(fits[first].own, fits[key].own)]
        if others:
            raise CheckpointError(
                "holds the network several times with different weights, at "
                f"{', '.join(repr(key or '') for key in (first, *others))}",
                where=where,
                hint="Name one: --weights key=…; key= in Python; weights.key in a card",
            )
        return first, fits[first].prefix
    # Nothing fits: the likeliest guess makes the most telling list of differences.
    key, tensors = next(iter(found.items()))
    shared = [p for p in _growing_prefixes(tensors) if all(n.startswith(p) for n in tensors)]
    return key, shared[-1] if prefix is None else prefix


def further_weights(network: nn.Module, content: Any, key: str | None) -> list[str]:
    """Where else a file has the network, with other weights than at ``key``."""
    found = find_state_dicts(content)
    if len(found) < 2:
        return []
    try:
        fits = _fits(network, found, None)
    except CheckpointError:  # under several prefixes, of a card that names one
        return []
    if key not in fits:
        return []
    return [k or "" for k, fit in fits.items() if not _same(fits[key].own, fit.own)]


class _Fit(NamedTuple):
    """A state dict without its prefix: all that the network needs, of the right shapes."""

    prefix: str
    own: dict[str, Tensor]


def _fits(
    network: nn.Module, found: Mapping[str | None, Mapping[str, Tensor]], prefix: str | None
) -> dict[str | None, _Fit]:
    wanted = network.state_dict()
    fits: dict[str | None, _Fit] = {}
    shaped: dict[str | None, _Fit] = {}
    for key, stored in found.items():
        tensors = in_own_names(
            network, stored, _common_prefix(stored) if prefix is None else prefix
        )
        chosen = matching_prefix(network, tensors) if prefix is None else prefix
        if chosen is None:
            continue
        own = {
            inner_name(name.removeprefix(chosen), wanted): tensor
            for name, tensor in tensors.items()
            if name.startswith(chosen)
        }
        if any(name not in own for name in wanted if not is_counter(name)):
            continue
        fits[key] = _Fit(chosen, own)
        if all(own[name].shape == wanted[name].shape for name in wanted if name in own):
            shaped[key] = fits[key]
    return shaped or fits


def _common_prefix(names: Mapping[str, object]) -> str:
    """The longest chain of wrapper prefixes that all names begin with."""
    chains = (p for p in _growing_prefixes(names) if all(name.startswith(p) for name in names))
    return max(chains, key=len, default="")


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one is other or all(_equal(one, name, name, other) for name in one)


def _is_average(key: str | None) -> bool:
    return not _AVERAGES.isdisjoint(re.split(r"[._]", (key or "").casefold()))
