"""``robench curve``: robust accuracy at every ε from one minimum-norm run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.options import (
    CLUSTER,
    JsonFlag,
    check_one_radius,
    model_names,
    option,
    request_options,
)
from robench.request import Request

if TYPE_CHECKING:
    from robench.reporting.curves import RobustCurve


@request_options(
    without=(
        *("suite", "settings", "goal", "targets", "save_adversarial", "trace", "shard"),
        *CLUSTER,
    )
)
def curve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="As for `robench run`; one or more.", autocompletion=model_names
        ),
    ],
    suite: Annotated[
        str, option("SUITE", "Where the minimum-norm attack is taken from.")
    ] = "minimum-norm",
    attack: Annotated[
        str | None,
        option("NAME", "An entry of the suite; default: its first minimum-norm one for the norm."),
    ] = None,
    out: Annotated[
        Path | None, option("FOLDER", "Where to; default: the results folder.", "--out", "-o")
    ] = None,
    *,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Draw robust accuracy against eps from one minimum-norm run of each model.

    The attack searches for each sample's smallest perturbation, of any size; its record is kept
    like any other, and counts finds within --eps (default: the model's own) alone. Records of the
    results folder at single radii are points beside the curve. Prints the curve at those radii, and
    where the two disagree by more than n resolves. Writes curve.csv and the figure, curve.png and
    curve.svg.
    """
    # Everything below loads torch, which --help does without.
    from robench.cli.printing import print_result
    from robench.cli.run_display import RunDisplay
    from robench.files import ensure_writable
    from robench.inspection.minimum_norm_runs import minimum_norm_runs
    from robench.reporting.curves import curve_of, curve_sentences, curves_frame
    from robench.reporting.export import write_tables
    from robench.reporting.model_results import collect
    from robench.reporting.plots.curves import robust_curves
    from robench.reporting.plots.style import save
    from robench.results import Store

    check_one_radius(request)
    folder = request.folder if out is None else out
    ensure_writable(folder, "--out")
    # Named twice, a model has one curve.
    asked = replace(request, models=tuple(dict.fromkeys(models)), suite=suite)
    ran = minimum_norm_runs(asked, attack, RunDisplay)
    known = collect(Store(request.folder).records())
    curves = []
    for stored in ran:
        (result,) = collect([stored])
        curves.append(curve_of(result, stored.record.attack.name, known))
    sentences = [sentence for item in curves for sentence in curve_sentences(item)]
    files = [*write_tables(folder, curve=curves_frame(curves))]
    files += save(robust_curves(curves), folder / "curve")
    content = {
        "curves": [_content(item) for item in curves],
        "findings": sentences,
        "files": [str(path) for path in files],
    }
    print_result(content, "\n".join([_table(curves), "", *sentences]), as_json=as_json)
    if not as_json:
        typer.echo(f"\nWritten: {', '.join(str(path) for path in files)}", err=True)


def _rows(curve: RobustCurve) -> list[dict[str, Any]]:
    """The curve at every radius that there is a record of, its own among them."""
    from robench.reporting.curves import WORST_CASE

    own = curve.result.threat_model
    radii = {own.radius: own.written, 0.0: "0"}
    worst = {point.eps: point for point in curve.points if point.source == WORST_CASE}
    radii |= {point.eps: point.written for point in worst.values()}
    rows = []
    for eps, written in sorted(radii.items()):
        share, point = curve.robust_acc(eps), worst.get(eps)
        rows.append(
            {
                "model": curve.model,
                "eps": written,
                curve.attack: share.estimate,
                "low": share.low,
                "high": share.high,
                "worst_case": None if point is None else point.robust_acc.estimate,
                "difference": None if point is None else point.difference.estimate,
            }
        )
    return rows


def _table(curves: list[RobustCurve]) -> str:
    from robench.formatting import format_table, number

    header = ("model", "eps", "curve", "95 % interval", "records", "difference")
    rows = []
    for item in curves:
        for row in _rows(item):
            interval = f"{number(row['low'])} – {number(row['high'])}"
            rest = (number(row["worst_case"]), number(row["difference"]))
            rows.append((row["model"], row["eps"], number(row[item.attack]), interval, *rest))
    return format_table(header, rows)


def _content(curve: RobustCurve) -> dict[str, Any]:
    return {
        "model": curve.model,
        "attack": curve.attack,
        "n": len(curve.sizes),
        "never_broken": curve.never_broken,
        "at": _rows(curve),
    }
