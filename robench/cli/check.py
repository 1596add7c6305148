"""``robench check``: the gate for new checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.option_groups import expand_groups
from robench.cli.options import DeviceOption, JsonFlag, ResultsFolder
from robench.cli.run_options import AttackOptions, SampleOptions, TrustOptions

if TYPE_CHECKING:
    from robench.regression_check import LeaderboardRow
    from robench.reporting.model_results import ModelResult

__all__ = ["check"]


@expand_groups
def check(
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="Name, id, or start of a sha256.")
    ],
    against: Annotated[
        str, typer.Option("--against", metavar="BASELINE", help="The model to be held against.")
    ],
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", metavar="POINTS", help="Tolerable loss of robust accuracy; default: 1.0."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="TOML file with all margins and levels."),
    ] = None,
    results: ResultsFolder = Path("results"),
    baseline_from: Annotated[
        Path | None,
        typer.Option(
            "--baseline-from",
            metavar="PATH",
            help="Another results folder, or a leaderboard CSV, that has the baseline.",
        ),
    ] = None,
    fill: Annotated[
        bool,
        typer.Option(
            "--fill", help="First run the attacks of --suite that are missing.", show_default=False
        ),
    ] = False,
    *,
    data: SampleOptions,
    attacks: AttackOptions,
    trust: TrustOptions,
    device: DeviceOption = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json-file", metavar="FILE", help="Also write JSON.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the summary.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a candidate is worse than a baseline.

    Exit code 0: not worse; 1: worse; 2: could not tell, or an error. Stored records are used;
    a model that has none is evaluated first, as `robench run` would.
    """
    from robench.regression_check import Policy, check_json, check_markdown, write_check
    from robench.regression_check import check as decide

    rules = Policy() if policy is None else Policy.load(policy)
    if margin is not None:
        rules = rules.with_margin(margin)
    filters = {
        "dataset": data.dataset,
        "norm": attacks.norm,
        "eps": attacks.eps,
        "n": attacks.n,
        "seed": attacks.seed,
    }
    wanted = [candidate] if baseline_from is not None else [candidate, against]
    missing, same_n = _without_records(wanted, results, filters)
    if fill or missing:
        # Loads torch, which a check of stored records does without.
        from robench.cli.evaluating import evaluate, prepare
        from robench.cli.requests import Request
        from robench.cli.run_display import RunDisplay

        request = Request(
            models=wanted if fill else missing,
            results=results,
            device=device,
            **data.request(),
            **attacks.request(),
            **trust.request(),
        )
        if request.n is None:
            request = replace(request, n=same_n)
        evaluation = prepare(request)
        with RunDisplay(evaluation.jobs) as display:
            evaluate(evaluation, display)
    pair = _pair(candidate, against, results, baseline_from, filters)
    outcome = decide(*pair, rules)
    write_check(outcome, json_path=json_file, junit_path=junit, markdown_path=markdown)
    typer.echo((check_json(outcome) if as_json else check_markdown(outcome)).rstrip())
    raise typer.Exit(outcome.exit_code)


def _without_records(
    wanted: list[str], folder: Path, filters: dict[str, Any]
) -> tuple[list[str], int | None]:
    """Which models have no record, and the n of those that have, if it is one."""
    from robench.cli.stores import record_name
    from robench.errors import UnknownNameError
    from robench.reporting.model_results import collect, results_of
    from robench.results import Store

    known = collect(Store(folder).records(), **filters)
    missing = []
    sizes = set()
    for name in wanted:
        try:
            sizes |= {result.n for result in results_of(known, record_name(name))}
        except UnknownNameError:
            missing.append(name)
    return missing, sizes.pop() if len(sizes) == 1 else None


def _pair(
    candidate: str,
    against: str,
    folder: Path,
    baseline_from: Path | None,
    filters: dict[str, Any],
) -> tuple[ModelResult, ModelResult | LeaderboardRow]:
    from robench.cli.stores import existing_store, record_name
    from robench.regression_check import leaderboard_row
    from robench.reporting.model_results import collect, find_pair

    own = collect(existing_store(folder).records(), **filters)
    first, second = record_name(candidate), record_name(against)
    if baseline_from is None:
        return find_pair(own, first, second)
    if baseline_from.suffix == ".csv":
        found, _ = find_pair(own, first, first)
        return found, leaderboard_row(baseline_from, second, found)
    others = collect(existing_store(baseline_from).records(), **filters)
    return find_pair(own, first, second, second_results=others)
