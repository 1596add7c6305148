"""Distributions of attention metrics, broken samples beside survivors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from robench.metric_catalogue import metric
from robench.reporting.findings import attention_findings, broken_and_survived
from robench.reporting.model_results import ModelResult
from robench.reporting.plots.style import (
    BROKEN,
    SURVIVED,
    captioned,
    describe,
    new_figure,
    styled,
)

__all__ = ["attention_distributions"]

_METRICS = ("attention_deviation", "attention_scatter_increase")


@styled
def attention_distributions(results: Sequence[ModelResult]) -> Figure | None:
    """Box plots of deviation and scatter: one pair of boxes a model, its effect size beside it.

    Boxes span the quartiles with the median; whiskers reach the 5th and 95th percentile; a
    diamond is the mean. The number on the right is the chance that a broken sample's value
    exceeds a survivor's, starred where that differs from ½ (Holm over models, p < 0.05).

    Returns:
        None if no model has the metrics.
    """
    shown = [result for result in results if result.attention_attack is not None]
    if not shown:
        return None
    findings = attention_findings(shown)
    figure = new_figure(10, 1.5 + 0.55 * len(shown))
    axes: Axes
    for column, name in enumerate(_METRICS):
        axes = figure.add_subplot(1, len(_METRICS), column + 1)
        drawn = [_boxes(axes, row, result, name) for row, result in enumerate(shown)]
        if not any(drawn):
            axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center")
        block = findings[findings["metric"] == name]
        for row, (_, found) in enumerate(block.iterrows()):
            axes.annotate(
                _effect(found["auc"], found["p_holm"]),
                (1.01, row),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7.5,
            )
        axes.annotate(
            "P(b > s)",
            (1.01, -0.55),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            color="#555555",
            annotation_clip=False,
        )
        item = metric(name)
        axes.set_yticks(
            range(len(shown)), [r.model.name for r in shown] if column == 0 else [""] * len(shown)
        )
        axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel=f"{item.label.lower()} ({item.unit})")
        axes.grid(visible=False, axis="y")
    figure.legend(
        handles=[
            Patch(facecolor=kind.colour, hatch=kind.hatch, edgecolor="black", label=label)
            for kind, label in ((BROKEN, "broken (b)"), (SURVIVED, "survived (s)"))
        ],
        loc="outside lower center",
        ncols=2,
        title="P(b > s): chance that a broken sample's value exceeds a survivor's; "
        "* not ½ (p < 0.05, Holm over models)",
        title_fontsize=7.5,
    )
    attacks = sorted({result.attention_attack or "" for result in shown})
    captioned(
        figure,
        f"Attention of broken and surviving samples under {' / '.join(attacks)}",
        describe(shown),
    )
    return figure


def _boxes(axes: Axes, row: int, result: ModelResult, name: str) -> bool:
    groups = broken_and_survived(result, result.attention_attack or "", name)
    drawn = False
    for values, kind, offset in zip(groups, (BROKEN, SURVIVED), (-0.2, 0.2), strict=True):
        if not len(values):
            continue
        drawn = True
        axes.boxplot(
            [values],
            positions=[row + offset],
            widths=0.32,
            orientation="horizontal",
            whis=(5, 95),
            showfliers=False,
            showmeans=True,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": kind.colour, "hatch": kind.hatch, "linewidth": 0.7},
            medianprops={"color": "black", "linewidth": 1.6},
            whiskerprops={"linewidth": 0.8},
            capprops={"linewidth": 0.8},
            meanprops={
                "marker": "D",
                "markersize": 4,
                "markerfacecolor": "white",
                "markeredgecolor": "black",
            },
        )
    return drawn


def _effect(auc: float, p: float) -> str:
    if np.isnan(auc):
        return "-"
    return f"{auc:.2f}{'*' if p < 0.05 else ''}"
