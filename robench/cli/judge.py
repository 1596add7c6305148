"""``robench judge``: adversarial inputs from elsewhere, judged and filed like any attack's."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.options import (
    SAMPLES,
    WEIGHTS,
    JsonFlag,
    model_names,
    request_options,
)
from robench.request import Request


@request_options(
    only=(
        *SAMPLES,
        *("n", "norm", "eps", "seed", "draws"),
        *WEIGHTS,
        *("trust_code", "device", "batch_size", "results"),
    )
)
def judge(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Id or short name in the zoo, card, weights file (with --arch), hf:… or "
            "robustbench:… address.",
            autocompletion=model_names,
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="npz, npy, pt or safetensors: inputs in [0, 1] or uint8, in the data set's order "
            "or with an array 'ids'.",
        ),
    ],
    *,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Judge adversarial inputs that were made elsewhere, and file them as a record.

    They have to lie in the box and in the ball, be finite and misclassified, whatever made them. The
    record has a column of its own, and lowers the best known accuracy, not the robust accuracy.
    """
    # Everything below loads torch, which --help does without.
    from robench.cli.output import record_line, record_text
    from robench.cli.printing import print_result
    from robench.inspection import judging

    record = judging.judge(replace(request, models=(model,)), file).record
    content = record_line(record) | {"judged": record.model_dump(mode="json")["judged"]}
    print_result(content, record_text(record), as_json=as_json)
    if not as_json:
        typer.echo("\n`robench leaderboard` shows what it changes.", err=True)
