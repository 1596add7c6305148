"""``robench verify-bounds``: how robust a model is at least."""

from dataclasses import replace
from typing import Annotated

import typer

from robench.cli.options import SAMPLES, WEIGHTS, CsvFile, JsonFlag, option, request_options
from robench.request import Request

_DEFAULT_N = 100


@request_options(only=(*SAMPLES, *WEIGHTS, "norm", "eps", "trust_code", "results"))
def verify_bounds(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="As for `robench run`; one or more.")
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
    results folder's records, where it has some, bound it from above. A sample that is verified and
    broken at once ends the command: it would be a fault of robench.
    """
    # Everything below loads torch, which --help does without.
    import pandas as pd

    from robench.bounds.propagation import METHODS
    from robench.cli.output import print_result
    from robench.files import atomic_write
    from robench.formatting import format_table, number
    from robench.registry import unknown_name
    from robench.reporting.export import csv_bytes
    from robench.request_loading import load_requested, threat_models_for
    from robench.results import Store
    from robench.validity.verified import verify

    if method not in METHODS:
        raise unknown_name("method", method, list(METHODS))
    request = replace(request, models=tuple(models), n=n, at_most=_DEFAULT_N)
    folder = request.folder
    known = list(Store(folder).records()) if folder.is_dir() else []
    found = []
    for model, samples in load_requested(request):
        for threat in threat_models_for(request, model.summary.threat_model):
            verified = verify(model, samples, threat, method)
            found.append((verified, verified.attacked(known)))
    if csv is not None:
        tables = [
            verified.table.assign(model=verified.model.summary.id, under=str(verified.threat))
            for verified, _ in found
        ]
        atomic_write(csv, csv_bytes(pd.concat(tables, ignore_index=True)))
    content = [
        {
            "model": verified.model.summary.id,
            "under": str(verified.threat),
            "dataset": verified.dataset.name,
            "method": verified.method,
            "n": len(verified.table),
            "clean_acc": verified.clean_acc.estimate,
            "verified_acc": verified.verified_acc.estimate,
            "verified_acc_low": verified.verified_acc.low,
            "verified_acc_high": verified.verified_acc.high,
            "best_known_acc": None if attacked is None else attacked.estimate,
        }
        for verified, attacked in found
    ]
    shown = ("model", "under", "n", "clean_acc", "verified_acc", "best_known_acc")
    rows = [[number(line[name]) for name in shown] for line in content]
    print_result(content, format_table(shown, rows), as_json=as_json)
