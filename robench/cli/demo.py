"""``robench demo``: what robench does, on two small networks, in half a minute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import PlotsFlag, ResultsFolder, option
from robench.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from robench.reporting.model_results import ModelResult
    from robench.results import Store

_MODELS = ("digits/Linf-0.2/standard", "digits/Linf-0.2/pgd-at")
_ATTACK = "pgd-20"
_SHADES = " .:-=+*#%@"
"""From black to white"""


def demo(
    n: Annotated[int, option("N", "Images.", "--n", "-n", min=1)] = 100,
    results: ResultsFolder = Path("robench-demo"),
    plots: PlotsFlag = True,
) -> None:
    """Attack two small networks that come with robench, and explain what is seen.

    Takes half a minute, no network and no GPU. What it leaves is an ordinary results folder.
    """
    # Everything below loads torch, which --help does without.
    from robench.api import prepare
    from robench.cli.run_display import RunDisplay
    from robench.models.zoo import zoo_cards
    from robench.reporting.model_results import collect
    from robench.reporting.publish import publish
    from robench.results import Store

    typer.echo(
        f"1. Two networks read handwritten digits, {n} images of 8x8 pixels. 'standard' was trained as\n"
        "   usual, 'pgd-at' against attacks. Each image is now changed by at most 0.2 of the way from\n"
        "   black to white in each pixel, as the network's own gradients say, to make it fail.\n"
    )
    request = Request(
        models=_MODELS,
        dataset="digits",
        suite="quick",
        n=n,
        results=results,
        save_adversarial=True,
    )
    prepared = prepare(request)
    with RunDisplay(prepared.jobs) as display:
        records = prepared.run(display)
    found = {result.model.id: result for result in collect(records)}
    usual, trained = (found[name] for name in _MODELS)
    store, samples = Store(results), prepared.planned[0].dataset
    typer.echo(_picture(usual, samples.batch(range(len(samples))), store))
    typer.echo(_numbers(usual, trained))
    typer.echo(_answer(usual, trained))
    files = publish(store, plots=plots, cards=zoo_cards()).files
    shown = files[1] if plots else files[0]
    typer.echo(
        f"5. All of it is kept in {results}: open {shown}.\n"
        "   Next: robench run                    all eight models, against stronger attacks\n"
        "         robench doctor model.pt ...    is a model of your own read the right way?\n"
        "         robench run model.pt ...       attack it\n"
        "         robench --help                 and so on"
    )


def _picture(result: ModelResult, inputs: Tensor, store: Store) -> str:
    """A broken image before and after, in letters; empty where none was broken."""
    import torch

    stored = result.attacks[_ATTACK]
    broken = (stored.table["outcome"] == "broken").to_numpy().nonzero()[0]
    if not len(broken):
        return ""
    row = int(broken[0])
    found = torch.from_numpy(store.adversarial_rows(stored.record.key)[row : row + 1])
    line = stored.table.iloc[row]
    sides = zip(_letters(inputs[row, 0]), _letters(found[0, 0]), strict=True)
    drawn = "\n".join(f"      {one}    {other}" for one, other in sides)
    return (
        f"2. One of them, as it was and after the attack. 'standard' reads it as "
        f"{line['clean_prediction']}, and now as {line['adv_prediction']}:\n\n{drawn}\n"
    )


def _letters(image: Tensor) -> Sequence[str]:
    """(H, W) in [0, 1] → H lines, two letters a pixel."""
    scale = len(_SHADES) - 1
    return ["".join(2 * _SHADES[round(float(pixel) * scale)] for pixel in line) for line in image]


def _numbers(*results: ModelResult) -> str:
    from robench.formatting import number

    lines = []
    for result in results:
        robust = result.robust_acc
        lines.append(
            f"   {result.model.name:<10} {number(result.clean_acc.estimate):>5} % right as they are, "
            f"{number(robust.estimate):>5} % under attack "
            f"({number(robust.low)} to {number(robust.high)})"
        )
    return (
        "3. An attack only proposes: each changed image is judged by the network itself, and counts if\n"
        "   it is within the bounds and misread. Right under every attack is 'robust':\n\n"
        + "\n".join(lines)
        + "\n\n   In brackets what other images of the same kind could have given (95 %). A stronger attack\n"
        "   can only lower it, so this is an upper bound: 'robench validate' says what it is worth.\n"
    )


def _answer(usual: ModelResult, trained: ModelResult) -> str:
    from robench.regression_check import check

    lines = []
    for candidate, baseline in ((usual, trained), (trained, usual)):
        said = check(candidate, baseline)
        why = [item.quantity for item in said.criteria if item.verdict == said.verdict]
        lines.append(
            f"   {candidate.model.name} against {baseline.model.name}: {said.verdict.value}, exit code "
            f"{said.exit_code} ({', '.join(why)})"
        )
    return (
        "4. The same images decide between two models. Is a checkpoint worse than another one?\n\n"
        + "\n".join(lines)
        + "\n\n   That is 'robench check CANDIDATE --against BASELINE', a gate for CI. It asks of several\n"
        "   things whether more than a margin is lost; few images can show a large loss, but not that\n"
        "   there is none.\n"
    )
