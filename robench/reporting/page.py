"""The leaderboard as one HTML file to explore: tables, models, samples; nothing to fetch from
elsewhere."""

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from robench.errors import StoreError
from robench.records import ModelCard, Validation
from robench.reporting.explorer.contents import explorer_contents, result_id
from robench.reporting.leaderboard import NO_FLAG, leaderboard_csv
from robench.reporting.model_results import ModelResult
from robench.reporting.page_tables import (
    GROUP,
    Section,
    leaderboard_table,
    report_section,
    validation_section,
)

_NO_RECORDS = ("There are no records yet. Run `robench run` first.",)
_INTRODUCTION = (
    "Robust accuracy is the worst case, sample by sample, over the attacks that robench ran. Models "
    "whose 95 % intervals overlap share a rank. Best known also counts what other records of the "
    "model broke within this radius: other suites, seeds and radii, and inputs made elsewhere.",
    f"“{NO_FLAG}” means that no check raised a doubt, not that the number is proven.",
)

_SCRIPTS = (
    *("numbers", "statistics", "state", "contents"),
    *("charts", "board", "model", "compare", "pictures", "samples", "main"),
)
"""Files of ``templates/explorer``, in the order in which they build on each other."""

_ID = "\0id"  # no column of a leaderboard is called so


def build_page(
    leaderboard: pd.DataFrame,
    *,
    figures: Iterable[str | Path] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
    validations: Iterable[Validation] = (),
    results: Iterable[ModelResult] = (),
    cards: Iterable[ModelCard] = (),
    pictures: Mapping[str, Any] | None = None,
    title: str = "robench leaderboard",
) -> str:
    """Render the page of :func:`robench.reporting.leaderboard.build_leaderboard`'s table.

    PNG and SVG ``figures`` are embedded, each under its file's name. ``tables`` are by report
    (:data:`robench.reporting.catalogue.REPORTS`); of ``per_class`` only the classes that come off
    worst are shown, a report from outside is shown as it is. Of ``validations`` each has a section with
    its verdict, every test's outcome and what was tried.

    Untargeted ``results`` are what one can explore: a panel for each model, with its card where
    ``cards`` has it, and samples, shown by :func:`~robench.reporting.explorer.pictures.explorer_pictures`.
    Without them the page has its tables alone.

    Raises:
        StoreError: a figure cannot be read.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    explored, judged = list(results), list(validations)
    board = _board(leaderboard, explored)
    sections = [validation_section(item) for item in judged]
    sections += [
        report_section(name, frame) for name, frame in (tables or {}).items() if len(frame)
    ]
    if images := [_image(Path(path)) for path in figures]:
        sections.append(Section("Figures", images=images))
    # Names of models and classes come from other people's files: everything is escaped.
    environment = Environment(
        loader=PackageLoader("robench.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    contents = explorer_contents(explored, cards=cards, validations=judged)
    contents["pictures"] = pictures or {"clean": {}, "attacked": {}}
    return environment.get_template("page.html.j2").render(
        title=title,
        introduction=_INTRODUCTION if board or sections else _NO_RECORDS,
        board=board,
        columns=_columns(board),
        sections=sections,
        csv=f"data:text/csv;charset=utf-8,{quote(leaderboard_csv(leaderboard))}",
        style=Markup(_file("page.css")),
        contents=Markup(_json(contents)),
        script=Markup("\n".join(_file(f"explorer/{name}.js") for name in _SCRIPTS)),
    )


def _board(leaderboard: pd.DataFrame, results: Sequence[ModelResult]) -> list[Section]:
    """A section for each group of the leaderboard, its rows leading to the ``results``."""
    if not len(leaderboard):
        return []
    ids = _row_ids(leaderboard, results)
    frame = leaderboard.assign(**{_ID: ids})
    sections = []
    for key, block in frame.groupby(list(GROUP), sort=False, dropna=False):
        dataset, norm, eps, n, seed, _ = key
        heading = f"{dataset}, {norm} {eps}, n = {n}, seed {seed}"
        table = leaderboard_table(block.drop(columns=_ID), block[_ID].tolist())
        sections.append(Section(heading, [table]))
    return sections


def _row_ids(leaderboard: pd.DataFrame, results: Sequence[ModelResult]) -> list[str]:
    """The ids of the rows' results, empty where a row has none."""
    found: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    for result in results:
        group, model = result.group, result.model
        about = (group.dataset, group.norm, result.threat_model.written, group.n, group.seed)
        found[*about, group.fingerprint, model.name, model.weights_sha256].append(result_id(result))
    columns = [*GROUP, "model", "weights_sha256"]
    keys = zip(*(leaderboard[name].tolist() for name in columns), strict=True)
    return [(found[key] or [""]).pop(0) for key in keys]


def _columns(board: Sequence[Section]) -> dict[str, str]:
    """Every column of the leaderboards with its heading, numbered by its place."""
    tables = [table for section in board for table in section.tables]
    return {
        name: column.label
        for table in tables
        for name, column in zip(table.names, table.columns, strict=True)
    }


def _json(content: dict[str, Any]) -> str:
    """JSON that no browser takes for anything else, whatever names are in it."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return (resources.files("robench.reporting") / "templates" / name).read_text("utf-8")


def _image(path: Path) -> dict[str, str]:
    kinds = {".png": "image/png", ".svg": "image/svg+xml"}
    if path.suffix not in kinds:
        raise StoreError(f"cannot embed {path.name!r}", where=path, hint="Give a PNG or SVG file")
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise StoreError(f"cannot read the figure: {error.strerror}", where=path) from error
    caption = f"{path.stem.replace('_', ' ')} ({path.parent.name})"
    return {"source": f"data:{kinds[path.suffix]};base64,{content}", "caption": caption}
