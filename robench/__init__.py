"""robench: how robust is this image classifier, and can that number be trusted?"""

from typing import TYPE_CHECKING

from robench.registry import lazily

if TYPE_CHECKING:
    from robench.api import evaluate, load_model, prepare
    from robench.request import Request

__all__ = ["Request", "__version__", "evaluate", "load_model", "prepare"]

__version__ = "0.1.0"

# torch takes seconds to import; `robench --help` and leaderboards do without it.
__getattr__ = lazily(
    __name__, {"api": ("evaluate", "load_model", "prepare"), "request": ("Request",)}
)
