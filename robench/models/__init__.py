"""Models: cards, safe loading of checkpoints, the zoo, architectures and the wrapper.

Reading cards and listing the zoo import no torch; the names below load what they need when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.models.architectures import ARCHITECTURES
    from robench.models.cards import read_card, write_card
    from robench.models.wrapper import RobenchModel, buffer_fingerprint
    from robench.models.zoo import LocatedCard, find_card, list_cards, zoo_folders

__all__ = [
    "ARCHITECTURES",
    "LocatedCard",
    "RobenchModel",
    "buffer_fingerprint",
    "find_card",
    "list_cards",
    "read_card",
    "write_card",
    "zoo_folders",
]

_HOMES = {
    "ARCHITECTURES": "architectures",
    "LocatedCard": "zoo",
    "RobenchModel": "wrapper",
    "buffer_fingerprint": "wrapper",
    "find_card": "zoo",
    "list_cards": "zoo",
    "read_card": "cards",
    "write_card": "cards",
    "zoo_folders": "zoo",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `robench zoo list` must answer at once.
    if name in _HOMES:
        return getattr(import_module(f"robench.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
