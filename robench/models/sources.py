"""Other collections of models, reached by an address such as ``hf:OWNER/NAME``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from robench.registry import Registry

if TYPE_CHECKING:
    from robench.models.wrapper import RobenchModel
    from robench.records import ModelCard

__all__ = ["SOURCES"]

SOURCES: Final[Registry[Callable[[str], ModelCard | RobenchModel]]] = Registry("model source")
"""Name before the colon → function of what comes after it. Their packages are optional."""

SOURCES.add("hf", "robench.models.hugging_face:hub_card", "hf:OWNER/NAME[@REVISION], timm's models")
SOURCES.add(
    "robustbench",
    "robench.models.robustbench:load_from_robustbench",
    "robustbench:DATASET/THREAT/NAME",
)
