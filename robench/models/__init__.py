"""Models: cards, safe loading of checkpoints, the zoo, architectures and the wrapper.

Reading cards and listing the zoo import no torch; the names below load what they need when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.models.architectures import ARCHITECTURES
    from robench.models.architectures.build import build_architecture
    from robench.models.cards import read_card, write_card
    from robench.models.checkpoints import checkpoint_sha256, read_checkpoint
    from robench.models.drafting import draft_card
    from robench.models.inspection import CheckpointInspection, inspect_checkpoint
    from robench.models.loading import load_checkpoint, load_model
    from robench.models.own_modules import wrap_module
    from robench.models.wrapper import RobenchModel, buffer_fingerprint
    from robench.models.zoo import LocatedCard, find_card, list_cards, zoo_folders

__all__ = [
    "ARCHITECTURES",
    "CheckpointInspection",
    "LocatedCard",
    "RobenchModel",
    "buffer_fingerprint",
    "build_architecture",
    "checkpoint_sha256",
    "draft_card",
    "find_card",
    "inspect_checkpoint",
    "list_cards",
    "load_checkpoint",
    "load_model",
    "read_card",
    "read_checkpoint",
    "wrap_module",
    "write_card",
    "zoo_folders",
]

_HOMES = {
    "ARCHITECTURES": "architectures",
    "CheckpointInspection": "inspection",
    "LocatedCard": "zoo",
    "RobenchModel": "wrapper",
    "buffer_fingerprint": "wrapper",
    "build_architecture": "architectures.build",
    "checkpoint_sha256": "checkpoints",
    "draft_card": "drafting",
    "find_card": "zoo",
    "inspect_checkpoint": "inspection",
    "list_cards": "zoo",
    "load_checkpoint": "loading",
    "load_model": "loading",
    "read_card": "cards",
    "read_checkpoint": "checkpoints",
    "wrap_module": "own_modules",
    "write_card": "cards",
    "zoo_folders": "zoo",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `robench zoo list` must answer at once.
    if name in _HOMES:
        return getattr(import_module(f"robench.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
