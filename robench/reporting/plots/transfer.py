"""Robust accuracy on inputs that were made for other models: a map of sources by targets."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robench.formatting import fixed
from robench.reporting.model_results import ATTENTION_ATTACK, ModelResult
from robench.reporting.plots import palette, style
from robench.reporting.plots.cells import draw_cells
from robench.reporting.transfers import MEMBER, OTHER, OWN, matrix_of, transfer_table


@style.styled
def transfer_map(results: Sequence[ModelResult], attack: str | None = None) -> Figure | None:
    """Robust accuracy in percent of targets, best first, on the inputs that ``attack`` made for each
    source, with a row for the lowest of others'; None where no inputs were judged on another model.

    Framed are models on their own inputs; an ensemble's cell is so with dashes where the target is one
    of its members. Without ``attack`` it is PGD-20's, or the first by name.
    """
    table = transfer_table(results)
    known = list(table["attack"].unique())
    if attack is None:
        attack = ATTENTION_ATTACK if ATTENTION_ATTACK in known else next(iter(known), None)
    if attack not in known:
        return None
    block = table[table["attack"] == attack]
    matrix = matrix_of(block)
    relation = block.pivot(index="source", columns="target", values="relation")
    own = block[block["relation"] == OWN].set_index("target")["robust_acc"]
    targets = sorted(matrix.columns, key=lambda name: (-own.get(name, np.inf), name))
    ensembles = sorted(set(matrix.index) - set(targets))
    sources = [*(name for name in targets if name in matrix.index), *ensembles]
    lowest = block[block["relation"] == OTHER].groupby("target")["robust_acc"].min()
    shares = np.vstack([matrix.loc[sources, targets].to_numpy(float), lowest.reindex(targets)])
    texts = [["–" if np.isnan(share) else fixed(share, 1) for share in row] for row in shares]
    figure = style.new_figure(2.6 + 0.55 * len(targets), 1.9 + 0.27 * len(shares))
    axes = figure.add_subplot()
    rows = [*sources, "lowest of others"]
    draw_cells(axes, shares, texts, rows, targets, fontsize=0.83, aspect="auto")
    axes.axhline(len(sources) - 0.5, color=palette.WHITE, linewidth=5)
    lines = {OWN: "-", MEMBER: ":"}
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            if (line := lines.get(relation.loc[source, target])) is not None:
                corner = (column - 0.46, row - 0.44)
                axes.add_patch(
                    Rectangle(
                        corner,
                        0.92,
                        0.88,
                        fill=False,
                        edgecolor=palette.VERMILION,
                        linestyle=line,
                        zorder=3,
                    )
                )
    axes.set(xlabel="judged by", ylabel=f"made for, by {attack}")
    what = "Robust accuracy in % on transferred inputs (framed: on a model's own)"
    style.captioned(figure, what, style.describe(results))
    return figure
