"""What a weights file holds, and a card for one that came without."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from robench.errors import CardError, CheckpointError
from robench.models.architectures.build import build_architecture
from robench.models.checkpoints import (
    PROGRAM,
    CheckpointFormat,
    checkpoint_sha256,
    detect_format,
    read_checkpoint,
)
from robench.models.state_dicts import WRAPPER_PREFIXES
from robench.records import (
    ArchitectureSpec,
    AttentionSpec,
    ForwardSpec,
    InputSpec,
    ModelCard,
    PreprocessingSpec,
    parse,
)
from robench.threat_models import ThreatModel

__all__ = [
    "CheckpointInspection",
    "StateDictCandidate",
    "draft_card",
    "inspect_checkpoint",
    "matching_prefix",
]

_DEPTH: Final = 3

# In order of preference. Averaged weights come last: which of the two a paper evaluates is the
# user's to say, and both are listed.
_USUAL_KEYS: Final = (
    *("", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params"),
    *("weights", "last", "best", "module", "state_dict_ema", "model_ema", "ema"),
)


@dataclass(frozen=True)
class StateDictCandidate:
    """One state dict in the file.

    Args:
        key: its dotted path; None: the file is the state dict.
        shapes: name as in the file → shape.
    """

    key: str | None
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)

    @property
    def prefix(self) -> str:
        """The wrapper prefix that all names share, such as ``module.``."""
        return list(_growing_prefixes(self.shapes))[-1]


@dataclass(frozen=True)
class CheckpointInspection:
    """A file seen from outside.

    Args:
        path: the file.
        sha256: its hash.
        format: its layout.
        candidates: state dicts in it, the likeliest first; empty for programs.
        others: what else is at the top level: name → short description.
    """

    path: Path
    sha256: str
    format: CheckpointFormat
    candidates: tuple[StateDictCandidate, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_program(self) -> bool:
        """The file brings its network: TorchScript or torch.export."""
        return self.format.is_program

    @property
    def best(self) -> StateDictCandidate:
        """The likeliest state dict.

        Raises:
            CheckpointError: the file holds none.
        """
        if not self.candidates:
            found = ", ".join(f"{k}: {v}" for k, v in list(self.others.items())[:8])
            raise CheckpointError(
                "holds no state dict" + (f", only {found}" if found else ""), where=self.path
            )
        return self.candidates[0]


def inspect_checkpoint(
    path: str | os.PathLike[str], *, trust_pickle: bool = False
) -> CheckpointInspection:
    """Look for state dicts under any key and for the prefixes that wrappers leave on names.

    Raises:
        UnsafeCheckpointError: reading would execute code.
        CheckpointError: the file cannot be read.
    """
    path = Path(path)
    seen = CheckpointInspection(path, checkpoint_sha256(path), detect_format(path))
    if seen.is_program:
        return seen
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    found = [
        StateDictCandidate(key or None, {name: tuple(t.shape) for name, t in tensors.items()})
        for key, tensors in _state_dicts(content, "", _DEPTH)
    ]
    found.sort(key=_unlikeliness)
    others = {}
    if isinstance(content, Mapping):
        taken = {(candidate.key or "").partition(".")[0] for candidate in found}
        others = {
            str(k): _describe(v)
            for k, v in content.items()
            if taken != {""} and str(k) not in taken
        }
    elif not found:
        others = {"the file": _describe(content)}
    return CheckpointInspection(path, seen.sha256, seen.format, tuple(found), others)


def _state_dicts(value: Any, key: str, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping) or not value:
        return
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        yield key, value
    elif depth:
        for name, inner in value.items():
            if isinstance(name, str):
                yield from _state_dicts(inner, f"{key}.{name}" if key else name, depth - 1)


def _unlikeliness(candidate: StateDictCandidate) -> tuple[int, int, int]:
    key = candidate.key or ""
    last = key.rpartition(".")[2].casefold()
    place = _USUAL_KEYS.index(last) if last in _USUAL_KEYS else len(_USUAL_KEYS)
    return place, key.count("."), -sum(math.prod(shape) for shape in candidate.shapes.values())


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
    can tell.
    """
    wanted = set(network.state_dict())
    for prefix in _growing_prefixes(names):
        if wanted == {name.removeprefix(prefix) for name in names}:
            return prefix
    return None


def _growing_prefixes(names: Mapping[str, object]) -> Iterator[str]:
    """``""``, then ever longer chains of wrapper prefixes that all names share."""
    longer = [""]
    while longer and names:
        prefix = longer[0]
        yield prefix
        longer = [
            prefix + p for p in WRAPPER_PREFIXES if all(n.startswith(prefix + p) for n in names)
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
    attention: AttentionSpec | None = None,
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
        forward: arguments and output path.
        attention: how to look at its attention.
        preprocessing: how images of other sizes are prepared for it.
        key: place of the state dict; None: guessed.
        prefix: prefix to strip; None: guessed, with the architecture's own names as the judge.
        trust_pickle: execute the code that the file carries.

    Raises:
        CardError: a field has a wrong value.
        CheckpointError: the file cannot be read or holds no state dict.
    """
    path = Path(path)
    spec = ArchitectureSpec(name=architecture) if isinstance(architecture, str) else architecture
    seen = inspect_checkpoint(path, trust_pickle=trust_pickle)
    if not (seen.is_program or spec.name == PROGRAM):
        key, prefix = _place(seen, spec, num_classes, (input or InputSpec()).channels, key, prefix)
    content = {
        "name": name or _name_from(path.stem),
        "dataset": dataset,
        "num_classes": num_classes,
        "threat_model": ThreatModel.parse(threat_model),
        "defense": defense,
        "architecture": ArchitectureSpec(name=PROGRAM) if seen.is_program else spec,
        "weights": {
            "path": str(path.resolve()),
            "sha256": seen.sha256,
            "key": key,
            "strip_prefix": prefix or "",
        },
        "input": input,
        "forward": forward,
        "attention": attention,
        "preprocessing": preprocessing,
    }
    given = {field: value for field, value in content.items() if value is not None}
    return parse(ModelCard, given, CardError, where=path)


def _place(
    seen: CheckpointInspection,
    spec: ArchitectureSpec,
    num_classes: int,
    in_channels: int,
    key: str | None,
    prefix: str | None,
) -> tuple[str | None, str]:
    candidates = [c for c in seen.candidates if key in (None, c.key)]
    if not candidates:
        if key is None:
            return seen.best.key, ""  # raises, and says what the file holds instead
        raise CheckpointError(
            f"has no state dict at key {key!r}",
            where=seen.path,
            hint=f"It has one at: {', '.join(repr(c.key or '') for c in seen.candidates)}",
        )
    if prefix is not None:
        return candidates[0].key, prefix
    network = build_architecture(spec, num_classes, in_channels)
    for candidate in candidates:
        fitting = matching_prefix(network, candidate.shapes)
        if fitting is not None:
            return candidate.key, fitting
    # Nothing fits: the likeliest guess makes the most telling list of differences.
    return candidates[0].key, candidates[0].prefix


def _name_from(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-._+")[:100] or "model"
