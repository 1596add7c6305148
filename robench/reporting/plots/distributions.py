"""Distributions over samples: attention of the broken beside the survivors, feature distances."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from robench.metric_catalogue import METRICS
from robench.reporting.findings import attention_findings, broken_and_survived
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import palette, style

_METRICS = ("attention_deviation", "attention_scatter_increase")
_LOOKS = (palette.BROKEN, palette.SURVIVED)
_FACES = (palette.VERMILION, "none")
"""One filled and one hollow, which paper without colours shows too"""

_BOXES: dict[str, Any] = {
    "widths": 0.32,
    "orientation": "horizontal",
    "whis": (5, 95),
    "showfliers": False,
    "showmeans": True,
    "patch_artist": True,
    "manage_ticks": False,
    "medianprops": {"color": palette.BLACK, "linewidth": 1.6},
    "whiskerprops": {"linewidth": 0.8},
    "capprops": {"linewidth": 0.8},
    "meanprops": {"marker": "D", "ms": 4, "mfc": palette.WHITE, "mec": palette.BLACK},
}


@style.styled
def attention_distributions(results: Sequence[ModelResult]) -> Figure | None:
    """Box plots of deviation and scatter: one pair of boxes a model, its effect size beside it.

    Boxes span the quartiles with the median; whiskers reach the 5th and 95th percentile; a
    diamond is the mean. The number on the right is the chance that a broken sample's value
    exceeds a survivor's, starred where that differs from ½ (Holm over models, p < 0.05).
    None if no model has the metrics.
    """
    shown = [result for result in results if result.attention_attack is not None]
    if not shown:
        return None
    findings = attention_findings(shown)
    figure = style.new_figure(6.8, 1.5 + 0.4 * len(shown))
    axes: Axes
    for column, name in enumerate(_METRICS):
        axes = figure.add_subplot(1, len(_METRICS), column + 1)
        drawn = [_boxes(axes, row, result, name) for row, result in enumerate(shown)]
        if not any(drawn):
            axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center")
        block = findings[findings["metric"] == name]
        beside = axes.get_yaxis_transform()
        for row, (auc, p) in enumerate(zip(block["auc"], block["p_holm"], strict=True)):
            text = "-" if np.isnan(auc) else f"{auc:.2f}{'*' if p < 0.05 else ''}"
            axes.text(1.01, row, text, transform=beside, va="center", fontsize=style.relative(0.83))
        axes.text(
            1.01,
            -0.55,
            "P(b > s)",
            transform=beside,
            fontsize=style.relative(0.78),
            color=palette.REMARK,
        )
        item = METRICS[name]
        style.rows_axis(axes, ["" if column else result.model.name for result in shown])
        axes.set_xlabel(f"{item.label.lower()}\n({item.unit})")
    figure.legend(
        handles=[
            Patch(facecolor=face, edgecolor=kind.colour, label=label)
            for kind, face, label in zip(
                _LOOKS, _FACES, ("broken (b)", "survived (s)"), strict=True
            )
        ],
        loc="outside lower center",
        ncols=2,
        title="P(b > s): chance that a broken sample's value exceeds a survivor's\n"
        "* not ½ (p < 0.05, Holm over models)",
        title_fontsize=style.relative(0.83),
    )
    title = f"Attention of broken and surviving samples under {style.attention_attacks(shown)}"
    style.captioned(figure, title, style.describe(shown))
    return figure


@style.styled
def feature_distances(results: Sequence[ModelResult]) -> Figure | None:
    """Histograms as in ANCRA's paper (arXiv 2310.03358), one panel a model.

    Of each sample: the cosine distance to its own adversarial example (alignment) and the mean
    one to adversarial examples of other classes (exclusion). The less they overlap, the better.
    None if no model has both metrics.
    """
    shown = []
    for result in results:
        pair = [result.reported(name) for name in ("alignment", "exclusion")]
        pair = [values[~np.isnan(values)] for values in pair]
        if all(len(values) for values in pair):
            shown.append((result, pair))
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = style.new_figure(max(4.6, 2.27 * columns), 1.2 + 1.45 * rows)
    top = max(float(values.max()) for _, pair in shown for values in pair)
    bins = np.linspace(0, max(top, 1e-6), 41)
    for number, (result, pair) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        labels = ("own adversarial example (alignment)", "other classes' (exclusion)")
        for values, kind, face, label in zip(pair, _LOOKS, _FACES, labels, strict=True):
            axes.hist(
                np.clip(values, 0, None),
                bins=bins.tolist(),
                weights=np.full(len(values), 100 / len(values)),
                histtype="stepfilled",
                facecolor=face,
                edgecolor=kind.colour,
                linewidth=1,
                label=label if number == 0 else None,
            )
        axes.set_title(result.model.name)
        if number % columns == 0:
            axes.set_ylabel("% of samples")
        if number >= len(shown) - columns:
            axes.set_xlabel("cosine distance")
    figure.legend(loc="outside lower center", ncols=2)
    drawn = [result for result, _ in shown]
    title = f"Feature distances under {style.attention_attacks(drawn)}"
    style.captioned(figure, title, style.describe(drawn))
    return figure


def _boxes(axes: Axes, row: int, result: ModelResult, name: str) -> bool:
    groups = broken_and_survived(result, name)
    for values, kind, face, offset in zip(groups, _LOOKS, _FACES, (-0.2, 0.2), strict=True):
        if len(values):
            box = {"facecolor": face, "edgecolor": kind.colour, "linewidth": 1}
            axes.boxplot([values], positions=[row + offset], boxprops=box, **_BOXES)
    return any(map(len, groups))
