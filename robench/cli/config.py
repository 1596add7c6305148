"""``robench config``: what is set where."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from robench.cli.options import JsonFlag

_VARIABLES = ("ROBENCH_CACHE", "ROBENCH_DATA", "ROBENCH_ZOO")


def config(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Show the defaults that robench.toml in this folder sets, and where robench keeps things."""
    from robench.cli.defaults import FILE_NAME, for_command, options_of, read_defaults
    from robench.cli.printing import print_result
    from robench.files import cache_folder, config_folder, data_folder
    from robench.formatting import format_table

    path = Path(FILE_NAME)
    content = read_defaults(Path())
    options = options_of(context.find_root().command)
    each = {name: for_command(content, name, options) for name in options if name != "config"}
    found = {name: table for name, table in each.items() if table}
    rows = [
        (name, key, str(value)) for name, table in found.items() for key, value in table.items()
    ]
    folders = {
        "cache": str(cache_folder()),
        "data": str(data_folder()),
        "configuration": str(config_folder()),
    }
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    said = f"{path.resolve()}: " + ("" if path.exists() else "there is none; ")
    said += f"{len(rows)} defaults" if rows else "nothing is set"
    tables = [said]
    tables += [format_table(("command", "option", "value"), rows)] if rows else []
    tables.append(format_table(("folder", "path"), folders.items()))
    tables += [format_table(("variable", "value"), variables.items())] if variables else []
    described = {"file": str(path.resolve()), "defaults": found}
    described |= {"folders": folders, "variables": variables}
    print_result(described, "\n\n".join(tables), as_json=as_json)
