"""TOML of cards and suites as a generator changes it: other types, other names, other text."""

from __future__ import annotations

import datetime
import tomllib
from typing import Any

import tomli_w
from canary import STRANGER
from hypothesis import strategies as st

CODE = [
    "os:system",
    f"{STRANGER}:build",
    "builtins:eval",
    "json.decoder:JSONDecoder",
    "os.path:join",
]
PLACES = [
    *(
        "../../../../etc/passwd",
        "/dev/zero",
        "/etc/passwd",
        "~",
        "~nobody-of-this-name/x",
        "..",
        ".",
    ),
    *(
        "",
        "a\x00b",
        "a\nb",
        "\x1b[2J",
        "\u202egnp.exe",
        "a" * 300,
        "a" * 5000,
        "é",
        "C:\\x",
        "//x/y",
    ),
    *("https://[", "https://127.0.0.1:1/w", "http://x/w", "file:///etc/passwd", "://", "HTTPS://x"),
    *(
        f"package:{STRANGER}/w",
        "package:__main__/x",
        "package:torch/../x",
        "package:os/x",
        "package:",
    ),
    *("file:x", "hf:a/b", "robustbench:cifar10/Linf/x"),
]
NUMBERS = [-1, 0, 1, 2, 3, 2**63, -(2**63) - 1, 10**400, 0.0, -0.0, 0.5, 1.0, 10.0, 1e308, 5e-324]
ODD_NUMBERS = [float("nan"), float("inf"), float("-inf")]
WORDS = ["10", "0.5", "true", "no", "nan", "None", "Linf", "L2-0.5", "Linf-8/255", "Linf-٨", "RGB"]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


ANYTHING = st.one_of(
    st.sampled_from([*CODE, *PLACES, *WORDS]),
    st.sampled_from([*NUMBERS, *ODD_NUMBERS, True, False]),
    st.sampled_from(
        [
            [],
            {},
            [[]],
            [0.5],
            [1, 1],
            [True],
            ["x"],
            [0.5] * 3,
            {"a": [{"b": 1}]},
            _deep(19),
            _deep(40),
        ]
    ),
    st.sampled_from(
        [datetime.date(2020, 1, 1), datetime.time(1, 2), datetime.datetime(2020, 1, 1)]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.lists(st.sampled_from(["Linf", "L2", "L1", "Linf"]), max_size=3),
)
"""Of whatever type; a field takes few of them."""

GONE = object()
"""In place of a value: the field is left out."""


def put(content: dict[str, Any], place: tuple[str | int, ...], value: Any) -> None:
    """Set what stands at a place of nested tables and lists; a place that is not there stays so."""
    inner: Any = content
    for step in place[:-1]:
        if isinstance(inner, dict) and isinstance(step, str):
            inner = inner.setdefault(step, {})
        elif isinstance(inner, list) and isinstance(step, int) and step < len(inner):
            inner = inner[step]
        else:
            return
    last = place[-1]
    if isinstance(inner, dict) and isinstance(last, str):
        if value is GONE:
            inner.pop(last, None)
        else:
            inner[last] = value
    elif (
        isinstance(inner, list)
        and isinstance(last, int)
        and last < len(inner)
        and value is not GONE
    ):
        inner[last] = value


@st.composite
def spoilt(draw: st.DrawFn, text: str) -> str:
    """Another text: cut, with a character more, a line twice, or other line ends."""
    how = draw(st.sampled_from(["cut", "insert", "insert", "twice", "swap", "bom", "crlf", "cr"]))
    at = draw(st.integers(0, len(text)))
    if how == "cut":
        return text[:at]
    if how == "insert":
        odd = draw(
            st.sampled_from(
                ["\x00", "\x1b", "\r", "\ufeff", '"', "'", "[", "=", "#", "\u2028", "_"]
            )
        )
        return text[:at] + odd + text[at:]
    lines = text.split("\n")
    line = draw(st.integers(0, len(lines) - 1))
    if how == "twice":
        return "\n".join([*lines[: line + 1], *lines[line:]])
    if how == "swap":
        return "\n".join([*lines[line:], *lines[:line]])
    return {
        "bom": "\ufeff" + text,
        "crlf": text.replace("\n", "\r\n"),
        "cr": text.replace("\n", "\r"),
    }[how]


def toml(content: dict[str, Any]) -> str:
    return tomli_w.dumps(content)


def read(text: str) -> Any:
    """What TOML says of a text; None: it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None
