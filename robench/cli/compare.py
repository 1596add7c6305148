"""``robench compare``: models side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    CsvFile,
    JsonFlag,
    filter_options,
    model_names,
    option,
    record_name,
    request_options,
)
from robench.request import Request

if TYPE_CHECKING:
    from robench.results import RecordFilter


@filter_options
@request_options(only=("results", "data_root"))
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="The baseline first. Names, ids, or starts of a sha256.",
            autocompletion=model_names,
        ),
    ],
    *,
    request: Request,
    wanted: RecordFilter,
    level: Annotated[float, option("LEVEL", "Of intervals, between 0 and 1.")] = 0.95,
    csv: CsvFile = None,
    markdown: Annotated[Path | None, option("FILE", "Also write the text.")] = None,
    pictures: Annotated[
        Path | None,
        option("FOLDER", "Draw the differences, and samples that only one of two models resists."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare models with the first one, on the same samples, from stored records.

    Prints each difference with its interval, the p-value corrected over the models, and what n
    allows to say.
    """
    from robench.cli.printing import print_result
    from robench.errors import UsageError
    from robench.files import atomic_write
    from robench.reporting.compare import compare_models, comparison_csv, comparison_markdown
    from robench.reporting.drawing import attempt
    from robench.reporting.model_results import collect, find_pair
    from robench.results import Store

    if len(models) < 2:
        raise UsageError("one model alone cannot be compared", hint="Name two or more")
    if not 0 < level < 1:
        raise UsageError(f"level {level} is not between 0 and 1", hint="Write --level 0.95")
    store = Store.existing(request.folder)
    pool = collect(store.records(), wanted)
    baseline, *others = map(record_name, models)
    pairs = [find_pair(pool, baseline, other) for other in others]
    first, rest = pairs[0][0], [other for _, other in pairs]
    comparison = compare_models(first, rest, level=level)
    if csv is not None:
        atomic_write(csv, comparison_csv(comparison))
    text = comparison_markdown(comparison)
    if markdown is not None:
        atomic_write(markdown, text.encode())
    if pictures is not None:

        def draw() -> tuple[list[Path], list[str]]:
            # Reads the samples, and so loads torch.
            from robench.inspection.comparison_pictures import draw_comparison

            # A data set is read by the name that the user gave; a record's has to be known.
            asked = replace(request, dataset=wanted.dataset)
            return draw_comparison(comparison, first, rest, store, pictures, request=asked)

        files, gaps = attempt(draw) or ([], [])
        for gap in gaps:
            typer.echo(f"robench: warning: {gap}", err=True)
        if files:
            typer.echo(f"Written: {', '.join(str(file) for file in files)}", err=True)
    content = vars(comparison) | {"group": str(comparison.group)}
    content["differences"] = content.pop("table").to_dict("records")
    print_result(content, text.rstrip(), as_json=as_json)
