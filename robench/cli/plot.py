"""``robench plot``: one figure of stored results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    ResultsFolder,
    filter_options,
    flag,
    model_names,
    option,
    record_name,
)
from robench.errors import UsageError

if TYPE_CHECKING:
    from robench.results import RecordFilter


@filter_options
def plot(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="What to draw; `robench plot --kinds` lists them."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Names, ids, or starts of a sha256; none: all.",
            autocompletion=model_names,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option("FILE", "Where to, as .pdf, .svg or .png; default: KIND.png.", "--out", "-o"),
    ] = None,
    results: ResultsFolder = Path("results"),
    *,
    wanted: RecordFilter,
    attack: Annotated[str | None, option("NAME", "Of a figure of one attack.")] = None,
    width: Annotated[
        float | None,
        option("INCHES", "A column of a paper is 3.3, a page 6.8; default: what it needs."),
    ] = None,
    height: Annotated[float | None, option("INCHES", "Default: what it needs.")] = None,
    font: Annotated[
        str, option("NAME", "An installed font, or serif, sans-serif, monospace.")
    ] = "DejaVu Sans",
    font_size: Annotated[float, option("POINTS", "Of the axes' labels; all others follow.")] = 9,
    dpi: Annotated[int | None, option("N", "Pixels an inch, of PNG; default: 150.")] = None,
    title: Annotated[
        bool, typer.Option("--title/--no-title", help="Say above what it is and of what data.")
    ] = True,
    kinds: Annotated[bool, flag("List the kinds of figures and stop.", "--kinds")] = False,
) -> None:
    """Draw one figure of stored results, as PDF, SVG or PNG.

    `robench leaderboard` draws all that there are into the results folder; this draws one, of the models
    that are named and at a paper's size. Of `differences` the first model is the baseline.
    """
    from robench.reporting.catalogue import reports

    if kinds:
        from robench.formatting import format_table

        rows = [(name, report.of, report.summary) for name, report in reports("figure").items()]
        typer.echo(format_table(("kind", "is of a", ""), rows))
        return
    if kind is None:
        raise UsageError("no kind of figure is named", hint="`robench plot --kinds` lists them")
    # matplotlib takes half a second.
    from robench.reporting.plots import one_figure

    path = Path(f"{kind}.png") if out is None else out
    looks = {"width": width, "height": height, "font": font, "font_size": font_size}
    one_figure.plot(
        kind,
        results,
        models=tuple(map(record_name, models or ())),
        attack=attack,
        out=path,
        **vars(wanted),
        **looks,
        dpi=dpi,
        title=title,
    )
    typer.echo(path)
