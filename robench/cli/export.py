"""``robench export``: stored results for papers, model hubs, trackers and CI."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    filter_options,
    flag,
    model_names,
    option,
    record_name,
    request_options,
)
from robench.request import Request

if TYPE_CHECKING:
    from robench.results import RecordFilter


@filter_options
@request_options(only=("results", "device", "data_root", "dataset_options", "trust_pickle"))
def export(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Only these: names, ids, or starts of a sha256; none: all.",
            autocompletion=model_names,
        ),
    ] = None,
    form: Annotated[
        str, option("FORMAT", "What to write; `robench export --formats` lists them.", "--format")
    ] = "csv",
    out: Annotated[
        Path | None, option("PATH", "A file or folder; default: texts are printed.", "--out", "-o")
    ] = None,
    columns: Annotated[
        str | None, option("NAMES", "Of a table, with commas between: model,clean_acc,robust_acc.")
    ] = None,
    digits: Annotated[int | None, option("N", "After the point, of a table; default: 1.")] = None,
    intervals: Annotated[bool, flag("Show 95 % intervals in a table.", "--intervals")] = False,
    samples: Annotated[
        bool, flag("Of csv and parquet: all samples, not the leaderboard.", "--samples")
    ] = False,
    against: Annotated[
        str | None, option("BASELINE", "Of junit and sarif: what the gate holds MODEL against.")
    ] = None,
    policy: Annotated[
        Path | None, option("FILE", "Of junit and sarif: the gate's policy, a TOML file.")
    ] = None,
    organization: Annotated[
        str | None, option("NAME", "Of every-eval-ever: who evaluated.")
    ] = None,
    formats: Annotated[bool, flag("List the formats and stop.", "--formats")] = False,
    *,
    request: Request,
    wanted: RecordFilter,
) -> None:
    """Write stored results as a table (latex, markdown, csv, parquet), for others (robustbench,
    model-index, every-eval-ever), as the gate's answer (junit, sarif), as inputs that records keep (png), or as events
    (tensorboard).

    The best of each column is in bold among what may be compared; what is not ranked or unreliable is
    not, and a remark says why. A field that stays empty is named on stderr, with the reason.
    """
    from robench.exports import FORMATS, Choices, Material
    from robench.results import Store

    if formats:
        from robench.formatting import format_table

        rows = [(name, FORMATS[name].kind, FORMATS.summary(name)) for name in FORMATS]
        typer.echo(format_table(("format", "is a", ""), rows))
        return
    chosen = FORMATS[form]
    material = Material(
        Store.existing(request.folder),
        wanted,
        tuple(map(record_name, models or ())),
        Choices(
            columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
            digits=digits,
            intervals=intervals,
            samples=samples,
            against=None if against is None else record_name(against),
            policy=policy,
            organization=organization,
        ),
        request,
    )
    written = chosen.write(material, out)
    if isinstance(written, str):
        typer.echo(written, nl=False)
    else:
        for path in written:
            typer.echo(path)
    for (name, why), count in Counter((gap.field, gap.why) for gap in material.gaps).items():
        first = next(gap.model for gap in material.gaps if (gap.field, gap.why) == (name, why))
        who = first if count == 1 else f"{first} and {count - 1} more"
        typer.echo(f"robench: note: {name} stays empty for {who}: {why}", err=True)
