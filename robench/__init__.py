"""robench: how robust is this image classifier, and can that number be trusted?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.api import evaluate, load_model

__all__ = ["__version__", "evaluate", "load_model"]

__version__ = "0.1.0"

_LAZY = {"evaluate": "robench.api", "load_model": "robench.api"}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `robench --help` and leaderboards do without it.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
