"""``robench attacks``: what models can be attacked with."""

from typing import Annotated, Any

import typer

from robench.cli.options import JsonFlag


def attacks(
    suite: Annotated[
        str | None,
        typer.Argument(metavar="SUITE", help="Show the entries of this suite (name or file)."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List attacks, adapters and suites, or the entries of one suite."""
    # Also pydantic takes its time: none of this is for --help.
    from robench.attacks import ADAPTERS, ATTACKS
    from robench.attacks.suites import list_suites, load_suite
    from robench.cli.printing import print_result
    from robench.formatting import format_table
    from robench.stand_ins.catalogue import STAND_INS

    if suite is not None:
        chosen = load_suite(suite, trust_code=True)  # nothing is built of it
        print_result(chosen.model_dump(mode="json"), _suite_text(chosen), as_json=as_json)
        return
    suites = [load_suite(name) for name in list_suites()]
    registered = {
        "attacks": {name: ATTACKS.summary(name) for name in ATTACKS},
        "adapters": {name: ADAPTERS.summary(name) for name in ADAPTERS},
        "stand-ins": {name: STAND_INS.summary(name) for name in STAND_INS},
    }
    tables = [format_table((title, ""), known.items()) for title, known in registered.items()]
    rows = [
        (item.name, " ".join(dict.fromkeys(spec.name for spec in item.attacks)), item.description)
        for item in suites
    ]
    tables.append(format_table(("suites", "columns", ""), rows))
    entries = {item.name: item.model_dump(mode="json") for item in suites}
    print_result({**registered, "suites": entries}, "\n\n".join(tables), as_json=as_json)


def _suite_text(suite: Any) -> str:
    from robench.formatting import format_table

    rows: list[tuple[str, str, str, str]] = []
    for spec in suite.attacks:
        rows += [_row(spec), *(_row(stage, "  ") for stage in spec.stages)]
        if spec.audit is not None:
            audit = spec.audit
            first = spec.stages[audit.first_stage].name
            what = f"from {first} on {audit.fraction:.0%}, at least {audit.minimum}"
            rows.append(("", "audit", "", what))
    table = format_table(("entry", "attack", "norms", "parameters"), rows)
    return f"{suite.name} (version {suite.version}): {suite.description}\n\n{table}"


def _row(spec: Any, indent: str = "") -> tuple[str, str, str, str]:
    asked = {"within": spec.within, "through": spec.through}
    shown = {**spec.params, **{name: value for name, value in asked.items() if value is not None}}
    params = " ".join(f"{name}={value}" for name, value in shown.items())
    return f"{indent}{spec.name}", spec.attack, " ".join(spec.norms), params
