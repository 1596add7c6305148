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
    from robench.api import (
        Evaluation,
        attack,
        compare,
        evaluate,
        judge,
        leaderboard,
        list_models,
        load_dataset,
        load_model,
        prepare,
        transfer,
        validate,
    )
    from robench.reporting.plots.one_figure import plot
    from robench.request import Request
    from robench.stored_results import check, export

__all__ = [
    "Evaluation",
    "Request",
    "__version__",
    "attack",
    "check",
    "compare",
    "evaluate",
    "export",
    "judge",
    "leaderboard",
    "list_models",
    "load_dataset",
    "load_model",
    "plot",
    "prepare",
    "transfer",
    "validate",
]

__version__ = "0.1.0"

# torch takes seconds to import; `robench --help` and leaderboards do without it.
__getattr__ = lazily(
    __name__,
    {
        "reporting.plots.one_figure": ("plot",),
        "request": ("Request",),
        "stored_results": ("check", "export"),
        "api": __all__,
    },
)
