"""robench: how robust is this image classifier, and can that number be trusted?"""

import sys

# ``python -m robench`` puts the working folder first. Nothing in it must stand in for an installed
# module, nor be one: it comes back, in the last place, for code that is named and trusted.
working_folder: str | None = None
if sys.argv[:1] == ["-m"] and "robench" in sys.orig_argv and not sys.flags.safe_path:
    working_folder = sys.path.pop(0)

from typing import TYPE_CHECKING  # noqa: E402

from robench.registry import lazily  # noqa: E402

if TYPE_CHECKING:
    from robench.api import evaluate, judge, load_model, prepare, validate
    from robench.request import Request

__all__ = ["Request", "__version__", "evaluate", "judge", "load_model", "prepare", "validate"]

__version__ = "0.1.0"

# torch takes seconds to import; `robench --help` and leaderboards do without it.
__getattr__ = lazily(
    __name__,
    {"api": ("evaluate", "judge", "load_model", "prepare", "validate"), "request": ("Request",)},
)
