"""Distances between features, own adversarial example against other classes'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from robench.reporting.model_results import ModelResult
from robench.reporting.plots.style import (
    BROKEN,
    SURVIVED,
    captioned,
    describe,
    new_figure,
    styled,
)

__all__ = ["feature_distances"]


@styled
def feature_distances(results: Sequence[ModelResult]) -> Figure | None:
    """Histograms as in ANCRA's paper (arXiv 2310.03358), one panel a model.

    Of each sample: the cosine distance to its own adversarial example (alignment) and the mean
    one to adversarial examples of other classes (exclusion). The less they overlap, the better.

    Returns:
        None if no model has both metrics.
    """
    shown = []
    for result in results:
        attack = result.attention_attack
        if attack is None:
            continue
        pair = [result.column(attack, name) for name in ("alignment", "exclusion")]
        pair = [values[~np.isnan(values)] for values in pair]
        if all(len(values) for values in pair):
            shown.append((result, pair))
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(max(5.0, 3.2 * columns), 1.2 + 2.0 * rows)
    top = max(float(values.max()) for _, pair in shown for values in pair)
    bins = np.linspace(0, max(top, 1e-6), 41)
    for number, (result, pair) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        for values, kind, label in zip(
            pair,
            (BROKEN, SURVIVED),
            ("own adversarial example (alignment)", "other classes' (exclusion)"),
            strict=True,
        ):
            weights = np.full(len(values), 100 / len(values))
            axes.hist(
                np.clip(values, 0, None),
                bins=bins.tolist(),
                weights=weights,
                color=kind.colour,
                hatch=kind.hatch,
                edgecolor="black",
                linewidth=0.3,
                alpha=0.65,
                label=label if number == 0 else None,
            )
        axes.set_title(result.model.name, fontsize=9)
        if number % columns == 0:
            axes.set_ylabel("% of samples")
        if number >= len(shown) - columns:
            axes.set_xlabel("cosine distance")
    figure.legend(loc="outside lower center", ncols=2)
    attacks = sorted({result.attention_attack or "" for result, _ in shown})
    captioned(
        figure,
        f"Feature distances under {' / '.join(attacks)}",
        describe([result for result, _ in shown]),
    )
    return figure
