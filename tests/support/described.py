"""What a card, a suite or a radius says, worked out by hand: fields, types and bounds.

Nothing of robench is used. A description is plain data in one form (lists, floats where a field is
one), or :class:`RefusedError` is raised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any


class RefusedError(Exception):
    """The text says something that is none of the field's values."""


Reading = Callable[[Any], Any]


def text(value: Any) -> str:
    if type(value) is not str:
        raise RefusedError
    return value


def matching(pattern: str) -> Reading:
    def read(value: Any) -> str:
        if re.fullmatch(pattern, text(value)) is None:
            raise RefusedError
        return str(value)

    return read


NAME = matching(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def whole(least: float = -math.inf) -> Reading:
    def read(value: Any) -> int:
        if type(value) is not int or value < least:
            raise RefusedError
        return value

    return read


def figure(value: Any) -> float:
    if type(value) not in (int, float):
        raise RefusedError
    try:
        return float(value)
    except OverflowError as error:
        raise RefusedError from error


def real(value: Any) -> float:
    if not math.isfinite(number := figure(value)):
        raise RefusedError
    return number + 0.0


def answer(value: Any) -> bool:
    if type(value) is not bool:
        raise RefusedError
    return value


def one_of(*words: str) -> Reading:
    def read(value: Any) -> str:
        if value not in words or type(value) is not str:
            raise RefusedError
        return value

    return read


def either(*readings: Reading) -> Reading:
    def read(value: Any) -> Any:
        for reading in readings:
            try:
                return reading(value)
            except RefusedError:
                continue
        raise RefusedError

    return read


def listed(item: Reading, *, least: int = 0, most: float = math.inf) -> Reading:
    def read(value: Any) -> list[Any]:
        if type(value) is not list or not least <= len(value) <= most:
            raise RefusedError
        return [item(inner) for inner in value]

    return read


def one_or_listed(one: Reading, item: Reading) -> Reading:
    return either(lambda value: [one(value)], listed(item))


def tabled(item: Reading) -> Reading:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise RefusedError
        return {name: item(inner) for name, inner in value.items()}

    return read


def plain(value: Any, depth: int = 20) -> Any:
    if depth == 0:
        raise RefusedError
    if type(value) is dict:
        return {name: plain(inner, depth - 1) for name, inner in value.items()}
    if type(value) is list:
        return [plain(inner, depth - 1) for inner in value]
    if type(value) is float and not math.isfinite(value):
        raise RefusedError
    if type(value) not in (bool, int, float, str):
        raise RefusedError
    return value


def free(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise RefusedError
    return dict(plain(value))


def record(required: dict[str, Reading], optional: dict[str, Reading]) -> Reading:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict or not required.keys() <= value.keys():
            raise RefusedError
        known = {**required, **optional}
        if not value.keys() <= known.keys():
            raise RefusedError
        return {name: known[name](inner) for name, inner in value.items()}

    return read


def _number(written: str) -> Fraction:
    if re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)", written) is None or len(written) > 100:
        raise RefusedError
    whole_part, _, decimals = written.partition(".")
    return Fraction(int(whole_part + decimals), 10 ** len(decimals))


def radius(written: str) -> Fraction:
    """The exact value of an ε; 0 is one here."""
    top, slash, bottom = (part.strip() for part in written.partition("/"))
    if len(written.strip()) > 100 or (slash and not re.fullmatch(r"[0-9]+\.?[0-9]*", bottom)):
        raise RefusedError
    divisor = _number(bottom) if slash else Fraction(1)
    if not divisor:
        raise RefusedError
    return _number(top) / divisor


def norm(written: str) -> str:
    name = {"linf": "Linf", "inf": "Linf", "l2": "L2", "2": "L2", "l1": "L1", "1": "L1"}
    if (key := written.strip().lower()) not in name:
        raise RefusedError
    return name[key]


def ball(of: str, written: str) -> str:
    """``Linf-8/255``, as it is shown."""
    value, kind = radius(written), norm(of)
    if not Fraction(1, 10**12) <= value <= 10**9 or (kind == "Linf" and value > 1):
        raise RefusedError
    return f"{kind}-{''.join(written.split())}"


def threat_model(value: Any) -> str:
    kind, dash, written = text(value).partition("-")
    if not dash:
        raise RefusedError
    return ball(kind, written.replace("_", "/"))


# --- cards ------------------------------------------------------------------------------------

_PAIR = listed(whole(1), least=2, most=2)
_STEP = either(whole(), text)
_INPUT_FIELDS: dict[str, Reading] = {
    "channels": whole(1),
    "size": _PAIR,
    "low": real,
    "high": real,
    "mean": one_or_listed(real, real),
    "std": one_or_listed(real, real),
    "channel_order": one_of("RGB", "BGR"),
}


def input_spec(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = record({}, _INPUT_FIELDS)(value)
    channels = found.get("channels", 3)
    if not found.get("high", 1.0) > found.get("low", 0.0):
        raise RefusedError
    if any(len(found[name]) not in (1, channels) for name in ("mean", "std") if name in found):
        raise RefusedError
    if min(found.get("std", [1.0])) <= 0:
        raise RefusedError
    return found


def _preprocessing(value: Any) -> dict[str, Any]:
    interpolations = one_of("nearest", "bilinear", "bicubic", "lanczos")
    fields = {"resize": whole(1), "crop": whole(1), "size": _PAIR, "interpolation": interpolations}
    found: dict[str, Any] = record({}, fields)(value)
    if "size" in found and "resize" in found:
        raise RefusedError
    return found


forward_spec = record(
    {},
    {
        "arguments": free,
        "output": one_or_listed(_STEP, _STEP),
        "outputs": tabled(listed(_STEP)),
        "outputs_arguments": free,
    },
)

_TEXTS = ("paper", "authors", "link", "venue", "command", "training_data", "notes")
_FLAG = record(
    {"name": text, "severity": one_of("note", "warning", "severe"), "evidence": text},
    {"count": whole()},
)

card: Reading = record(
    {
        "name": NAME,
        "dataset": NAME,
        "num_classes": whole(2),
        "threat_model": threat_model,
        "defense": text,
        "architecture": record({"name": text}, {"arguments": free}),
        "weights": record(
            {"path": text, "sha256": matching("[0-9a-f]{64}")}, {"key": text, "strip_prefix": text}
        ),
    },
    {
        "schema_version": lambda value: 1 if type(value) is int and value == 1 else text(None),
        "display_name": text,
        "input": input_spec,
        "preprocessing": _preprocessing,
        "forward": forward_spec,
        "attention": record(
            {},
            {
                "method": one_of("grad_cam", "rollout", "feature_sum", "none"),
                "layer": text,
                "feature_layer": text,
            },
        ),
        "provenance": record(
            {},
            {
                **dict.fromkeys(_TEXTS, text),
                **dict.fromkeys(("year", "seed", "epochs"), whole()),
                "recipe": free,
                "validation": tabled(figure),
                "reported": tabled(figure),
                "measured": tabled(either(whole(), figure, text)),
                "versions": tabled(text),
                "examination": record(
                    {"n": whole(1), "data": text, "date": text, "findings": listed(_FLAG)}, {}
                ),
            },
        ),
    },
)

# --- suites -----------------------------------------------------------------------------------

_NORM_LIST = listed(one_of("Linf", "L2", "L1"), least=1)
_AUDIT = record(
    {"first_stage": whole(1)},
    {"fraction": real, "minimum": whole(1)},
)


def _entry(value: Any, *, stage: bool) -> dict[str, Any]:
    fields: dict[str, Reading] = {
        "attack": text,
        "params": free,
        "norms": _NORM_LIST,
        "output": text,
        "stages": listed(lambda inner: _entry(inner, stage=True)),
        "audit": _AUDIT,
    }
    found: dict[str, Any] = record({"name": NAME}, fields)(value)
    stages = found.get("stages", [])
    if stage and stages:
        raise RefusedError
    if (found.get("attack", "cascade") == "cascade") != bool(stages):
        raise RefusedError
    audit = found.get("audit")
    if audit is not None and not (
        audit["first_stage"] < len(stages) and 0 < audit.get("fraction", 0.1) <= 1
    ):
        raise RefusedError
    if len({inner["name"] for inner in stages}) != len(stages):
        raise RefusedError
    return found


def norms_of(entry: dict[str, Any]) -> list[str]:
    return list(entry.get("norms", ["Linf", "L2", "L1"]))


def suite(value: Any, included: dict[str, list[dict[str, Any]] | None]) -> dict[str, Any]:
    """``included`` says what entries a name stands for; None: it is refused."""
    entries: list[dict[str, Any]] = []
    given = value.get("attacks", [])
    for entry in given if type(given) is list else [given]:
        if type(entry) is dict and "include" in entry:
            found = included.get(str(entry["include"])) if len(entry) == 1 else None
            if found is None:
                raise RefusedError
            entries += found
        else:
            entries.append(_entry(entry, stage=False))
    heads: dict[str, Reading] = {
        "schema_version": lambda inner: 1 if type(inner) is int and inner == 1 else text(None),
        "name": NAME,
        "version": whole(1),
        "description": text,
    }
    rest = {name: inner for name, inner in value.items() if name != "attacks"}
    found_head: dict[str, Any] = record({}, heads)(rest)
    columns = [(entry["name"], kind) for entry in entries for kind in norms_of(entry)]
    if not entries or len(set(columns)) != len(columns):
        raise RefusedError
    return {**found_head, "attacks": entries}


# --- sameness ---------------------------------------------------------------------------------


def typed(value: Any) -> str:
    """A text that is the same for the same values of the same types, in any order of names."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {typed(value[k])}' for k in sorted(value))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(typed, value))}]"
    return f"{type(value).__name__} {value!r}"
