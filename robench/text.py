"""Names that others chose are text everywhere: in terminals, spreadsheets and the names of files.

Imports nothing heavy: every record's names go through here.
"""

import hashlib
import re
from itertools import chain, count

_UNSEEN = re.compile(
    # Control characters; marks that reverse or join what is around them; halves of characters.
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MARKUP = re.compile(r"[\\`*\[\]<>|~]")
_LONGEST = 100


def visible(text: str) -> str:
    """``text`` in one line, with an escape such as ``\\x1b`` for what a terminal would obey or hide."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def markdown(text: str) -> str:
    """``text`` in one line of Markdown, also within a table, with nothing that it would mark up."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", visible(text))


def cell(text: str) -> str:
    """``text`` as a cell of a CSV file, with an apostrophe before what would be a formula."""
    formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula or text.startswith("'") else text


def uncell(text: str) -> str:
    """What :func:`cell` was given."""
    return text.removeprefix("'")


def file_name(name: str) -> str:
    """A name as one part of a path: it leads nowhere, and is hidden and too long for no system.

    What is left out of it is told by eight digits of the whole name's hash, so that two names are two
    files.
    """
    safe = re.sub(r"^\.+", "_", re.sub(r"[^A-Za-z0-9._+-]+", "_", name)) or "_"
    if safe == name and len(safe) <= _LONGEST:
        return safe
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()
    return f"{safe[: _LONGEST - 9]}-{digest[:8]}"


def unused_file_name(name: str, used: set[str], mark: str) -> str:
    """:func:`file_name`, with ``mark`` and then a number where ``used`` has it, which it joins.

    Names that differ only in capitals are one file on many systems.
    """
    own = file_name(name)
    marked = (f"{own}-{mark}" if number == 1 else f"{own}-{mark}-{number}" for number in count(1))
    chosen = next(found for found in chain([own], marked) if found.casefold() not in used)
    used.add(chosen.casefold())
    return chosen
