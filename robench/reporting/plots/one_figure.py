"""One figure of a kind that the catalogue names, of stored results."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from robench.errors import UsageError
from robench.registry import unknown_name
from robench.reporting.catalogue import Report, reports
from robench.reporting.drawing import best_first
from robench.reporting.model_results import ModelResult, collect, results_of
from robench.reporting.plots.style import Style, check_ending, using, write
from robench.results import RecordFilter, Store, StoredRecord

_CHOOSE = "Choose by dataset, norm, eps, n or seed, or name the models"


def plot(
    kind: str,
    results: str | Path | Iterable[StoredRecord] = "results",
    *,
    models: Sequence[str] = (),
    attack: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Figure:
    """One figure of stored results, as ``robench plot`` draws it.

    Args:
        kind: such as ``"accuracy_by_attack"``; ``robench plot --kinds`` lists them.
        results: a folder, an evaluation, or records: ``[*one, *other]``.
        models: by name, id or the start of the weights' sha256, in the order of which ``"differences"``
            takes the first as the baseline; none: all.
        attack: of a figure of one attack.
        out: also write it to this file: ``.pdf``, ``.svg`` or ``.png``.
        options: which records: ``dataset``, ``norm``, ``eps``, ``n``, ``seed``, ``goal``, ``targets``;
            and looks, :class:`~robench.reporting.plots.style.Style`: ``width`` and ``height`` in inches,
            ``font``, ``font_size``, ``dpi``, ``title``.

    Raises:
        UnknownNameError: no such kind, model, attack, option, font or ending of a file.
        UsageError: the records are not of one set of comparable results, or there is nothing to draw.
        StoreError: there is no such folder, or the file cannot be written.
    """
    which, looks = ({f.name for f in fields(of)} for of in (RecordFilter, Style))
    for name in options.keys() - which - looks:
        raise unknown_name("option", name, sorted(which | looks))
    style = Style(**{name: value for name, value in options.items() if name in looks})
    wanted = RecordFilter(**{name: value for name, value in options.items() if name in which})
    if out is not None:
        check_ending(Path(out))
    records = Store.existing(results).records() if isinstance(results, str | Path) else results
    figure = draw(kind, records, models, wanted=wanted, attack=attack, style=style)
    if out is not None:
        with using(style):
            write(figure, Path(out))
    return figure


def draw(
    kind: str,
    records: Iterable[StoredRecord],
    models: Sequence[str] = (),
    *,
    wanted: RecordFilter | None = None,
    attack: str | None = None,
    style: Style | None = None,
) -> Figure:
    """Draw one figure.

    Args:
        kind: a figure of :func:`robench.reporting.catalogue.reports`; hyphens will do.
        records: what is stored.
        models: by name, id or the start of the weights' sha256; none: all.
        wanted: which records.
        attack: of a figure that is of one; None: its own choice.
        style: size, font and so on.

    Raises:
        UnknownNameError: no such kind, model or attack; near misses are listed.
        UsageError: no records, records of several groups, an attack for a figure of all, or nothing
            to draw.
    """
    known = reports("figure")
    name = kind.replace("-", "_")
    if name not in known:
        raise unknown_name("kind of figure", kind, list(known))
    report = known[name]
    wanted = wanted or RecordFilter()
    if wanted.goal not in (None, report.goal):
        raise UsageError(f"{name} is of the goal {report.goal}", hint="Leave out --goal")
    results = _chosen(records, models, replace(wanted, goal=report.goal), report, name)
    by: list[str | None] = []
    if report.by_attack:
        by = [_attack(results, attack, report)]
    elif attack is not None:
        raise UsageError(f"{name} is of all attacks", hint="Leave out --attack")
    with using(style or Style()):
        figure = report(results, *by)
    if figure is None:
        under = f" under {by[0]}" if by and by[0] is not None else ""
        raise UsageError(
            f"there is nothing to draw: no record{under} has what {name} shows: {report.summary}",
            hint="`robench plot --kinds` says what others show",
        )
    assert isinstance(figure, Figure)
    return figure


_OF = {
    "targeted": ", which is of what was attacked with targets (--goal targeted)",
    "corrupted": ", which is of what was corrupted (--suite corruptions)",
}
"""Goal of a report → what to run for it"""


def _chosen(
    records: Iterable[StoredRecord],
    models: Sequence[str],
    wanted: RecordFilter,
    report: Report,
    name: str,
) -> list[ModelResult]:
    """The results that are asked for, in the order that the figure wants."""
    results = collect(records, wanted)
    if not results:
        raise UsageError(
            f"there are no records for {name}{_OF.get(report.goal, '')}",
            hint="Check the folder and the filters",
        )
    if models:
        found = [result for query in models for result in results_of(results, query)]
        # Named twice, a model is drawn once.
        results = list({(r.group, r.model.id, r.model.fingerprint): r for r in found}.values())
    groups = sorted({result.group for result in results})
    if report.of == "radii":
        groups = list({(g.dataset, g.norm, g.fingerprint, g.seed): g for g in groups}.values())
    if len(groups) > 1:
        raise UsageError(
            f"{name} is of one set of comparable results, and these are {len(groups)}: "
            + "; ".join(map(str, groups)),
            hint=_CHOOSE,
        )
    if report.of == "model" and len(results) > 1:
        raise UsageError(
            f"{name} is of one model, and there are {len(results)}: "
            + ", ".join(result.model.name for result in results),
            hint="Name one",
        )
    return results if report.of == "named" else best_first(results)


def _attack(results: Sequence[ModelResult], attack: str | None, report: Report) -> str | None:
    if attack is None:
        (first, *_) = results
        own = first.attention_attack or next(iter(first.attacks))
        return own if report.of == "model" else None
    known = {name for result in results for name in result.attacks}
    if attack not in known:
        raise unknown_name("attack", attack, sorted(known))
    return attack
