"""What the adversary may do, a norm and an exact radius, and what for: any error, or a target; or, with
no adversary, which corruptions images have met.

ε is kept as an exact fraction together with the way it was written. ``8/255`` and ``0.031`` are
different radii, and robench never merges them: they differ in every key, column and folder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

from robench.errors import UsageError
from robench.registry import unknown_name

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

Norm = Literal["Linf", "L2", "L1"]
NORMS: tuple[Norm, ...] = get_args(Norm)

CORRUPTIONS: Literal["corruptions"] = "corruptions"
GENERATED = "generated"
"""The corruptions that robench makes itself, beside sets that somebody published"""

Family = Norm | Literal["corruptions"]
"""What an attack is meant for: a norm's balls, or corruptions"""

Radius = str | float | Fraction
"""An ε as people give it."""

TARGET_RULES = ("next", "least-likely", "random", "all")
"""Ways to give each sample a wrong class to be brought to: the label + 1; the smallest clean logit; a
draw keyed by the sample; every one in turn. A class's number is a rule as well: that class for all."""

_TARGETED = "-targeted-"
_CLASS = re.compile(r"\d{1,9}", re.ASCII)
_EPS = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:\s*/\s*(\d+(?:\.\d*)?))?\s*", re.ASCII)

_SET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}", re.ASCII)

_LONGEST = 100
"""Characters of an ε; it is part of a folder's name."""

_SMALLEST, _LARGEST = Fraction(1, 10**12), Fraction(10**9)
"""Less changes no pixel in float32; in a larger ball lies every image."""


def class_number(text: str | None) -> int | None:
    """A class that targets name by its number; None: they are a rule, or there are none."""
    return int(text) if text is not None and _CLASS.fullmatch(text) else None


def parse_norm(text: str) -> Norm:
    """``"Linf"``, ``"linf"``, ``"inf"``, ``"l2"`` … → the canonical name.

    Raises:
        UsageError: the norm is not one of Linf, L2, L1.
    """
    wanted = text.strip().casefold().removeprefix("l")
    for norm in NORMS:
        if norm.casefold().removeprefix("l") == wanted:
            return norm
    raise UsageError(f"unknown norm {text!r}", hint=f"Use one of {', '.join(NORMS)}")


def parse_eps(text: Radius) -> tuple[Fraction, str]:
    """An ε in [0, 1] pixel units → its exact value and the way to write it.

    Raises:
        UsageError: the text is no non-negative number or fraction.
    """
    # Python writes small floats with an exponent, which people do not.
    written = (format(Decimal(repr(text)), "f") if type(text) is float else str(text)).strip()
    match = _EPS.fullmatch(written)
    if match is None or len(written) > _LONGEST:
        raise UsageError(f"eps {text!r:.100} is not a number", hint="Write it as 8/255 or 0.2")
    numerator, denominator = match.groups()
    if denominator is not None and Fraction(denominator) == 0:
        raise UsageError(f"eps {text!r} divides by zero", hint="Write it as 8/255 or 0.2")
    return Fraction(numerator) / Fraction(denominator or 1), re.sub(r"\s", "", written)


def parse_radii(eps: Radius | Iterable[Radius]) -> tuple[str, ...]:
    """One ε, or several that rise, ``"0,1/255,2/255"`` or a sequence → each as it is written.

    Raises:
        UsageError: there is none; one is no non-negative number; or they do not rise.
    """
    if isinstance(eps, str):
        given: list[Radius] = list(eps.split(","))
    else:
        given = list(eps) if isinstance(eps, Iterable) else [eps]
    if not given:
        raise UsageError("eps is an empty list", hint="Write radii that rise: 1/255,2/255")
    for text in map(str, given):
        norm, dash, radius = text.strip().partition("-")
        if dash and norm.casefold() in {name.casefold() for name in NORMS}:
            raise UsageError(
                f"eps {text!r} holds a norm, and all radii of a list are for one",
                hint=f"Write --norm {parse_norm(norm)} --eps {radius}",
            )
    parsed = [parse_eps(item) for item in given]
    for (value, written), (following, then) in itertools.pairwise(parsed):
        if value >= following:
            what = f"{then} follows {written}"
            if value == following:
                what = f"{written} and {then} are one radius"
            raise UsageError(f"the radii of eps do not rise: {what}", hint="Write 1/255,2/255")
    return tuple(written for _, written in parsed)


@dataclass(frozen=True)
class ThreatModel:
    """An Lp ball around each clean input, intersected with the pixel box [0, 1].

    Args:
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: the exact radius in [0, 1] pixel units.
        written: how the radius was written (``"8/255"``), for people and file names. Takes no
            part in comparisons.
        targets: one of :data:`TARGET_RULES`, or a class's number as text, of an adversary who is
            after a certain class; None: any misclassification is what it wants.
        corrupted: which common corruptions stand in an adversary's place, ``generated`` or a
            published set's name; None: there is an adversary. They may change all of an image, so
            their ball is the box: Linf of radius 1.
    """

    norm: Norm
    eps: Fraction
    written: str = field(compare=False)
    targets: str | None = None
    corrupted: str | None = None

    @classmethod
    def corruptions(cls, which: str = GENERATED) -> ThreatModel:
        """No adversary: images as common corruptions leave them."""
        return cls("Linf", Fraction(1), which, corrupted=which)

    @classmethod
    def of(cls, norm: str, eps: Radius) -> ThreatModel:
        """Build and validate.

        Raises:
            UsageError: unknown norm; ε not a number, not positive, so small that no pixel changes,
                or above the largest radius that can mean anything: 1 for Linf, where the ball then
                holds the whole box.
        """
        value, written = parse_eps(eps)
        canonical = parse_norm(norm)
        if value <= 0:
            raise UsageError(
                f"eps must be positive, got {written}",
                hint="Write it as 8/255 or 0.2; 0, the clean samples, stands before radii: 0,8/255",
            )
        if not _SMALLEST <= value <= _LARGEST:
            raise UsageError(
                f"eps must be between 1e-12 and 1e9, got {written}",
                hint="It is in units of pixels in [0, 1]: write 8/255 or 0.2",
            )
        if canonical == "Linf" and value > 1:
            raise UsageError(
                f"eps must be at most 1 for Linf, got {written}",
                hint="Inputs are in [0, 1]: an eps of 8 grey levels is written 8/255",
            )
        return cls(canonical, value, written)

    @classmethod
    def each(cls, norm: str, eps: Radius | Iterable[Radius]) -> tuple[ThreatModel, ...]:
        """One for each radius of :func:`parse_radii`.

        A 0 before others stands for the clean samples: nothing is allowed, so there is no threat.

        Raises:
            UsageError: as :func:`parse_radii` and :meth:`of`.
        """
        first, *others = parse_radii(eps)
        radii = others if others and parse_eps(first)[0] == 0 else [first, *others]
        return tuple(cls.of(norm, radius) for radius in radii)

    @classmethod
    def parse(cls, text: str | ThreatModel) -> ThreatModel:
        """``"Linf-8/255"`` or its file-name form ``"Linf-8_255"`` → ThreatModel; one stays itself.

        What is after targets has their rule behind it: ``"Linf-8/255-targeted-next"``.

        Raises:
            UsageError: the text does not have the form NORM-EPS, or the rule is none.
        """
        if isinstance(text, ThreatModel):
            return text
        norm, dash, rest = text.partition("-") if isinstance(text, str) else ("", "", "")
        if norm == CORRUPTIONS and _SET.fullmatch(rest or GENERATED):
            return cls.corruptions(rest or GENERATED)
        if not dash:
            raise UsageError(f"{text!r:.100} is not a threat model", hint="Write it as Linf-8/255")
        eps, targeted, targets = rest.partition(_TARGETED)
        found = cls.of(norm, eps.replace("_", "/"))
        return found.aimed_at(targets) if targeted else found

    def aimed_at(self, targets: str | None) -> ThreatModel:
        """The same ball with these ``targets``, a rule or a class's number; None: untargeted.

        Raises:
            UsageError: it is neither.
        """
        if targets is None or targets in TARGET_RULES:
            return replace(self, targets=targets)
        if (number := class_number(targets)) is None:
            raise unknown_name("rule for targets", f"{targets:.100}", list(TARGET_RULES))
        return replace(self, targets=str(number))  # 07 and 7 are one class

    @property
    def family(self) -> Family:
        """What attacks have to be meant for."""
        return self.norm if self.corrupted is None else CORRUPTIONS

    @property
    def goal(self) -> str:
        """One of :data:`robench.request.GOALS`: results of two are never mixed."""
        if self.corrupted is not None:
            return "corrupted"
        return "untargeted" if self.targets is None else "targeted"

    @property
    def radius(self) -> float:
        """ε as a float, in [0, 1] pixel units."""
        return float(self.eps)

    @property
    def slug(self) -> str:
        """A form that is safe in file names: ``"Linf-8_255"``."""
        return str(self).replace("/", "_")

    @property
    def identity(self) -> str:
        """A canonical form for hashing: equal exactly if the threat models are equal."""
        return str(self) if self.corrupted else f"{self.norm}-{self.eps}{self._aim}"

    def __str__(self) -> str:
        return f"{self.family}-{self.written}{self._aim}"

    @property
    def _aim(self) -> str:
        return "" if self.targets is None else f"{_TARGETED}{self.targets}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Only pydantic asks for it, which takes a moment to load.
        from pydantic_core import core_schema

        def validate(value: Any) -> ThreatModel:
            if not isinstance(value, ThreatModel | str):
                raise ValueError("is no text such as Linf-8/255")
            try:
                return cls.parse(value)
            except UsageError as error:
                raise ValueError(str(error)) from error

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )
