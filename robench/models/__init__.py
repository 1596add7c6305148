"""Models: cards, safe loading of checkpoints, the zoo, architectures and the wrapper.

Reading cards and listing the zoo import no torch; the names below load what they need when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.models.architectures import ARCHITECTURES
    from robench.models.wrapper import RobenchModel, buffer_fingerprint

_HOMES = {
    "ARCHITECTURES": "robench.models.architectures",
    "RobenchModel": "robench.models.wrapper",
    "buffer_fingerprint": "robench.models.wrapper",
}

__all__ = ["ARCHITECTURES", "RobenchModel", "buffer_fingerprint"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `robench zoo list` must answer at once.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
