"""``robench trust``: whose files may name code to run."""

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.options import JsonFlag, flag
from robench.errors import UsageError


def trust(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="A folder, or a file such as a suite.")
    ] = None,
    revoke: Annotated[bool, flag("Trust it no longer.", "--revoke")] = False,
    listed: Annotated[bool, flag("Show what is trusted, as without PATH.", "--list")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let the cards, programs and suites of a folder run the code that they name.

    Trust is kept in your own configuration, and ends when a file in the folder changes.
    """
    from robench import trust as kept
    from robench.cli.printing import print_result
    from robench.formatting import format_table

    if path is not None and listed:
        raise UsageError("--list takes no PATH", hint="Leave one of the two out")
    if path is None:
        if revoke:
            raise UsageError("--revoke needs a PATH", hint="`robench trust --list` shows them")
        found = kept.trusted_paths()
        rows = [(str(item.path), item.state) for item in found]
        text = format_table(("path", "state"), rows) if rows else "Nothing is trusted."
        content = [{"path": name, "state": state} for name, state in rows]
        print_result(content, text, as_json=as_json)
        return
    real, state = (kept.revoke(path), "revoked") if revoke else (kept.trust(path), "trusted")
    print_result({"path": str(real), "state": state}, f"{state}: {real}", as_json=as_json)
