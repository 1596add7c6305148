"""``robench verify-bounds``: how robust a model is at least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.options import (
    SAMPLES,
    WEIGHTS,
    CsvFile,
    JsonFlag,
    model_names,
    option,
    request_options,
)
from robench.request import Request

if TYPE_CHECKING:
    from robench.records import Bounds
    from robench.results import StoredRecord

_DEFAULT_N = 100


@request_options(only=(*SAMPLES, *WEIGHTS, "norm", "eps", "trust_code", "results"))
def verify_bounds(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="As for `robench run`; one or more.", autocompletion=model_names
        ),
    ],
    *,
    n: Annotated[int | None, option("N", "Samples; default: 100, or all of fewer.", min=1)] = None,
    method: Annotated[
        str,
        option(
            "[ibp|crown-ibp|crown]",
            "Each tighter and slower than the one before; crown is for small networks.",
        ),
    ] = "crown-ibp",
    csv: CsvFile = None,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Bound robust accuracy from below: no attack whatever can break a verified sample.

    For networks of convolutions, linear layers, batch normalisation, ReLU and average pooling. The
    bounds are kept beside the records: the leaderboard shows them as `verified_acc`. The records,
    where there are some, bound robust accuracy from above. A sample that is verified and broken at
    once ends the command: it would be a fault of robench.
    """
    # Everything below loads torch, which --help does without.
    from typing import cast, get_args

    import pandas as pd
    import torch

    from robench.cli.printing import print_result
    from robench.evaluation.recognition import check_recognised
    from robench.files import atomic_write, ensure_writable
    from robench.formatting import format_table, number
    from robench.preparation import check_fit
    from robench.records import BoundsMethod
    from robench.registry import unknown_name
    from robench.reporting.export import csv_bytes
    from robench.request_loading import load_requested, threat_models_for
    from robench.results import Store
    from robench.validity.verified import stored_bounds

    if method not in get_args(BoundsMethod):
        raise unknown_name("method", method, list(get_args(BoundsMethod)))
    chosen = cast(BoundsMethod, method)
    request = replace(request, models=tuple(models), n=n, at_most=_DEFAULT_N)
    store = Store(request.folder)
    ensure_writable(store.folder, "--results")
    known, cpu = list(store.records()), torch.device("cpu")
    content: list[dict[str, Any]] = []
    tables = []
    for model, samples in load_requested(request):
        check_fit(model, samples, cpu)
        check_recognised(model, samples, store, cpu)
        threats = threat_models_for(request, model.summary.threat_model)
        made = [stored_bounds(model, samples, t, chosen, store, known) for t in threats]
        if _asks_for_clean(request):
            content.append(_line(made[0], known) | _at_zero(made[0]))
        for bounds in made:
            content.append(_line(bounds, known))
            rows = pd.DataFrame([sample.model_dump() for sample in bounds.samples])
            about = {"model": bounds.model.id, "under": str(bounds.threat_model)}
            tables.append(rows.assign(**about))
    if csv is not None:
        atomic_write(csv, csv_bytes(pd.concat(tables, ignore_index=True)))
    shown = ("model", "under", "n", "clean_acc", "verified_acc", "best_known_acc")
    rows_shown = [[number(line[name]) for name in shown] for line in content]
    print_result(content, format_table(shown, rows_shown), as_json=as_json)


def _asks_for_clean(request: Request) -> bool:
    """Whether the radii begin with 0, as `robench run` understands it."""
    from robench.threat_models import parse_eps, parse_radii

    return request.eps is not None and parse_eps(parse_radii(request.eps)[0])[0] == 0


def _line(bounds: Bounds, known: Sequence[StoredRecord]) -> dict[str, Any]:
    from robench.validity.verified import best_known_acc, clean_acc, verified_acc

    verified, attacked = verified_acc(bounds), best_known_acc(bounds, known)
    return {
        "model": bounds.model.id,
        "under": str(bounds.threat_model),
        "dataset": bounds.dataset.name,
        "method": bounds.method,
        "n": len(bounds.samples),
        "clean_acc": clean_acc(bounds).estimate,
        "verified_acc": verified.estimate,
        "verified_acc_low": verified.low,
        "verified_acc_high": verified.high,
        "best_known_acc": None if attacked is None else attacked.estimate,
        "seconds": bounds.seconds,
    }


def _at_zero(bounds: Bounds) -> dict[str, Any]:
    """The same samples in a ball without extent: what is classified correctly is verified."""
    from robench.validity.verified import clean_acc

    clean = clean_acc(bounds)
    return {
        "under": f"{bounds.threat_model.norm}-0",
        "verified_acc": clean.estimate,
        "verified_acc_low": clean.low,
        "verified_acc_high": clean.high,
        "best_known_acc": clean.estimate,
        "seconds": 0.0,
    }
