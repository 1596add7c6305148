"""Stand-ins by name: what an entry of a suite may be searched ``through``.

``name``, ``name:argument``, an entry point of ``robench.stand_ins``, or ``package.module:Class``.
Listing names imports no torch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from robench.errors import UsageError
from robench.records import AttackSpec
from robench.registry import Registry, identity_of, names_code

if TYPE_CHECKING:
    from robench.models.wrapper import RobenchModel
    from robench.stand_ins.base import StandIn

STAND_INS: Registry[Any] = Registry("stand-in", "robench.stand_ins")
STAND_INS.add(
    "bpda",
    "robench.stand_ins.bpda:BPDA",
    "the model with other gradients where a module's own do not tell what the module does",
)
STAND_INS.add(
    "softened",
    "robench.stand_ins.softened:Softened",
    "the model with the gradients of soft choices where it makes hard ones",
)
STAND_INS.add(
    "smoothed",
    "robench.stand_ins.smoothed:Smoothed",
    "the model with gradients averaged over noise",
)
STAND_INS.add(
    "float64",
    "robench.stand_ins.float64:Float64",
    "the model in float64, its logits less their largest",
)
STAND_INS.add(
    "distilled",
    "robench.stand_ins.distilled:Distilled",
    "a student taught by the model's outputs in the ball",
)
STAND_INS.add("model", "robench.stand_ins.other_model:OtherModel", "another model, model:NAME")
STAND_INS.add(
    "auxiliary",
    "robench.stand_ins.auxiliary:Auxiliary",
    "final and further outputs at once, auxiliary or auxiliary:ALTERNATIVE",
)
STAND_INS.add(
    "hidden",
    "robench.stand_ins.hidden:Hidden",
    "the logits that a network computes inside",
)


def find_stand_in(through: str) -> StandIn:
    """What an entry is searched through.

    A class ``package.module:Class`` is imported: whether its author is trusted is asked where the
    suite's file is read.

    Raises:
        UnknownNameError: no such stand-in.
        UsageError: an argument too many or too few, or a class that cannot be imported.
    """
    factory, argument = _factory(through)
    arguments = () if argument is None else (argument,)
    try:
        inspect.signature(factory).bind(*arguments)
    except (TypeError, ValueError) as error:
        name = through.partition(":")[0]
        raise UsageError(
            f"the stand-in {name!r} takes no argument {argument!r}"
            if arguments
            else f"the stand-in {name!r} needs an argument",
            hint=f"Write {name!r}" if arguments else f"Write '{name}:ARGUMENT'",
        ) from error
    stand_in: StandIn = factory(*arguments)
    return stand_in


def foreign_stand_ins(spec: AttackSpec, model: RobenchModel) -> dict[str, str]:
    """What else decides an entry's numbers through its stand-ins: by name, code and other models.

    Raises:
        UnknownNameError, UsageError: as for :func:`find_stand_in`.
    """
    found: dict[str, str] = {}
    for through in (stage.through for stage in spec.stages or (spec,)):
        if through is not None:
            code = identity_of(_factory(through)[0])
            said = (code, find_stand_in(through).identity(model))
            if parts := [part for part in said if part is not None]:
                found[through] = " ".join(parts)
    return found


def _factory(through: str) -> tuple[Any, str | None]:
    """What makes a stand-in, and the argument for it if there is one."""
    name, colon, argument = through.partition(":")
    if through in STAND_INS or names_code(through):
        return STAND_INS.find(through, trust_code=True), None
    return STAND_INS[name], argument if colon else None
