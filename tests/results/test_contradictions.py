"""Records that were edited or put together, damaged files, and names that are not only names."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from fresh_process import in_a_fresh_process
from hypothesis import given, settings
from hypothesis import strategies as st
from invoke_cli import invoke
from matplotlib.figure import Figure
from record_factory import make_record, make_samples

from robench.errors import CorruptRecordError, RobenchError
from robench.records import AttackSpec, Outcome, Slopes, canonical_hash
from robench.reporting.export import csv_bytes
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv, read_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.plots import render, style
from robench.reporting.publish import publish
from robench.results import Store, StoredRecord
from robench.results.tables import parquet_bytes, samples_to_table, table_from_parquet
from robench.text import cell, file_name, markdown, uncell, unused_file_name, visible

LETTERS = "CBSSBSSE"
VALUES = {"alignment": [0.5, 0.1, 0.2, 0.3, float("nan"), 0.5, 0.6, 0.7]}


def stored(folder: Path, **options: Any) -> tuple[Store, str]:
    samples = make_samples(LETTERS, values=VALUES)
    record = make_record(samples, **options)
    store = Store(folder)
    store.write(record, samples)
    return store, record.key


def rewrite(store: Store, key: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the JSON as a careful forger would: the checksum is right again."""
    path = store.path_of(key)
    document = json.loads(path.read_bytes())
    document.pop("checksum")
    edit(document)
    document["checksum"] = canonical_hash(document)
    path.write_text(json.dumps(document))


def better(document: dict[str, Any]) -> None:
    document["record"]["counts"].update(survived=5, broken=1)


def renamed_eps(document: dict[str, Any]) -> None:
    document["record"]["threat_model"] = "Linf-0.9"


def other_seed(document: dict[str, Any]) -> None:
    document["record"]["seed"] = 7


def other_model(document: dict[str, Any]) -> None:
    document["record"]["model"]["fingerprint"] = canonical_hash("other")


def easier(document: dict[str, Any]) -> None:
    document["record"]["attack"]["params"]["steps"] = 1


def slopes_of_others(document: dict[str, Any]) -> None:
    document["record"]["slopes"] = {name: [1.0] for name in Slopes.columns()} | {
        "samples": ["other"]
    }


def half_of_slopes(document: dict[str, Any]) -> None:
    told = {name: [1.0] for name in Slopes.columns()} | {"samples": ["toy/00000"], "size": []}
    document["record"]["slopes"] = told


def fewer(document: dict[str, Any]) -> None:
    document["record"]["dataset"]["n"] = 99


def prouder_class(document: dict[str, Any]) -> None:
    document["record"]["class_robust_acc"] = {"class 0": 100.0}


def no_classes(document: dict[str, Any]) -> None:
    document["record"]["class_robust_acc"] = {}


def finer_mean(document: dict[str, Any]) -> None:
    document["record"]["metrics"]["alignment"]["mean"] = 0.9


def finer_survivors(document: dict[str, Any]) -> None:
    document["record"]["metrics"]["alignment"]["mean_survived"] = 0.9


def no_mean(document: dict[str, Any]) -> None:
    document["record"]["metrics"] = {}


def another_mean(document: dict[str, Any]) -> None:
    document["record"]["metrics"]["exclusion"] = {"mean": 0.0, "n": 7}


def no_precision(document: dict[str, Any]) -> None:
    document["record"].update(precision=None, seed=7)


def cheaper(document: dict[str, Any]) -> None:
    document["record"]["cost"]["forwards"] = 1


def audited(document: dict[str, Any]) -> None:
    audit = {"survivors": 4, "audited": 4, "hits": 0, "escalated": False}
    document["record"]["audit"] = {**audit, "missed_share_upper": 0.0}


def outside(document: dict[str, Any]) -> None:
    document["files"]["table"]["name"] = "../../../secret.parquet"


def no_table(document: dict[str, Any]) -> None:
    document["files"] = {}


@pytest.mark.parametrize(
    "edit",
    [
        *(slopes_of_others, half_of_slopes),
        *(better, other_seed, other_model, easier, fewer, prouder_class, no_classes, renamed_eps),
        *(finer_mean, finer_survivors, no_mean, another_mean, no_precision, cheaper, audited),
        *(outside, no_table),
    ],
)
def test_edited_records_are_named_by_every_command(tmp_path: Path, edit: Any) -> None:
    store, key = stored(tmp_path / "r")
    rewrite(store, key, edit)
    with pytest.raises(CorruptRecordError):
        store.read(key)
    if edit is not better:
        # All commands read records through the store; that each of them does, one edit shows.
        done = invoke("results", "verify", "--results", tmp_path / "r")
        assert done.code == 2
        assert key[:12] in done.out + done.err
        return
    for words in (["results", "list"], ["results", "verify"], ["results", "show", key[:12]]):
        done = invoke(*words, "--results", tmp_path / "r")
        assert done.code == 2, words
        assert key[:12] in done.out + done.err, words
    for words in (
        ["leaderboard", "--no-plots"],
        ["export", "--samples", "--out", tmp_path / "x.csv"],
        ["compare", "toy", "toy"],
    ):
        done = invoke(*words, "--results", tmp_path / "r")
        assert f"{key}.json" in done.err, words


def edited_rows(**changes: Any) -> list[Any]:
    rows = make_samples(LETTERS, values=VALUES)
    return [
        row.model_copy(update=changes) if row.outcome is Outcome.SURVIVED else row for row in rows
    ]


def relabelled() -> list[Any]:
    """All of class 1, with the predictions that this asks for."""
    changed = []
    for row in make_samples(LETTERS, values=VALUES):
        names = ("clean_prediction", "adv_prediction")
        right = {name: getattr(row, name) == row.label for name in names}
        flip = {name: int(right[name]) for name in names if getattr(row, name) is not None}
        changed.append(row.model_copy(update={"label": 1, **flip}))
    return changed


@pytest.mark.parametrize(
    "rows",
    [
        [row.model_copy(update={"label": 9}) for row in edited_rows()],
        edited_rows(clean_prediction=1 - 0, label=0),
        [row.model_copy(update={"adv_prediction": row.label}) for row in edited_rows()],
        edited_rows()[1:],
        edited_rows(adv_prediction=1, label=0, clean_prediction=0),
        relabelled(),
        edited_rows(clean_prediction=None),
        edited_rows(clean_margin=-3.0),
        edited_rows(perturbation_size=0.21),
        edited_rows(broken_by="pgd-20"),
        edited_rows(forwards=1),
        edited_rows(values={}),
    ],
    ids=[
        *("labels", "predictions", "fooled", "fewer", "survived", "relabelled", "unknown"),
        *("margins", "outside", "broken_by", "passes", "values"),
    ],
)
def test_edited_tables_are_refused(tmp_path: Path, rows: list[Any]) -> None:
    store, key = stored(tmp_path)
    content = parquet_bytes(samples_to_table(rows))
    path = store.path_of(key).with_suffix(".parquet")
    path.write_bytes(content)
    digest = __import__("hashlib").sha256(content).hexdigest()
    entry = {"name": path.name, "sha256": digest, "bytes": len(content)}
    rewrite(store, key, lambda document: document["files"].update(table=entry))
    with pytest.raises(CorruptRecordError, match="contradicts itself"):
        store.read(key)


def test_records_of_an_earlier_revision_are_read(tmp_path: Path) -> None:
    from robench.records import evaluations

    samples = make_samples(LETTERS)
    with pytest.MonkeyPatch.context() as patch:
        # The default was bound when the function was made.
        patch.setattr(evaluations.job_key, "__kwdefaults__", {"draws": None, "revision": 2})
        record = make_record(samples, precision=None)
    Store(tmp_path).write(record, samples)
    assert Store(tmp_path).read(record.key).record == record


STAGES = ["apgd", "fab", "square"]


def cascade(folder: Path, **changes: Any) -> None:
    """A cascade with an audit of its one survivor of the first stage, written and read again."""
    samples = [
        row.model_copy(update={"broken_by": name} if row.outcome is Outcome.BROKEN else {})
        for row, name in zip(make_samples("BBSC"), ["apgd", "fab", None, None], strict=True)
    ]
    stages = [{"name": name, "attack": "pgd"} for name in STAGES]
    spec = AttackSpec.model_validate(
        {"name": "core", "stages": stages, "audit": {"first_stage": 1, "fraction": 1.0}}
    )
    record = make_record(samples, spec=spec)
    found = [(3, 1), (2, 1), (1, 0)]
    content = {
        "stages": [
            {"name": name, "attempted": due, "broken": broken, "forwards": f, "backwards": b}
            | {"seconds": 1.0}
            for name, (due, broken), f, b in zip(STAGES, found, (6, 4, 2), (4, 3, 1), strict=True)
        ],
        "audit": {"survivors": 2, "audited": 2, "hits": 1, "escalated": True}
        | {"missed_share_upper": 0.0},
    }
    content |= changes
    record = type(record).model_validate(record.model_dump() | content)
    Store(folder).write(record, samples)
    assert Store(folder).read(record.key).record == record


def test_a_cascade_has_the_stages_and_the_audit_of_its_rows(tmp_path: Path) -> None:
    cascade(tmp_path)  # of before records said how far they escalated
    audit = {"survivors": 2, "audited": 2, "hits": 1, "escalated": True}
    for reach in ("fab", "square"):
        told = {**audit, "missed_share_upper": 0.0, "escalated_to": reach}
        cascade(tmp_path / reach, audit=told)
    for number, changes in enumerate(
        (
            {"stages": ()},
            {"audit": None},
            {"audit": {**audit, "missed_share_upper": None}},
            {"audit": {**audit, "missed_share_upper": 0.0, "escalated": False}},
            {"audit": {**audit, "missed_share_upper": 0.0, "survivors": 9}},
            {"audit": {**audit, "missed_share_upper": 0.0, "hits": 2}},
            {"audit": {**audit, "missed_share_upper": 0.0, "escalated_to": "apgd"}},
            {"audit": {**audit, "missed_share_upper": 0.0, "escalated_to": "no"}},
            {"audit": {**audit, "missed_share_upper": 0.5, "escalated_to": "fab"}},
        )
    ):
        with pytest.raises(CorruptRecordError, match="contradicts itself"):
            cascade(tmp_path / str(number), **changes)


def test_a_damaged_table_of_any_kind_is_one_error(tmp_path: Path) -> None:
    content = parquet_bytes(samples_to_table(make_samples(LETTERS)))
    generator = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = int(generator.integers(0, 256))
        cut = int(generator.integers(len(content) // 2, len(content) + 1))
        with contextlib.suppress(RobenchError):
            table_from_parquet(bytes(damaged[:cut]))


NAMES = [
    '=HYPERLINK("http://x")',
    "+1+1",
    "@SUM(A1)",
    "\tx",
    "\x1b[2J\x1b]0;owned\x07",
    "a\u202egnp.exe",
    "<script>alert(1)</script>",
    "$\\frac{1}{$",
    "../../../etc/x",
    "C:\\x|y:*?",
    "..",
    "-rf",
    "名前",
    "x" * 400,
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A record for each of the names, which is its model's."""
    store = Store(tmp_path_factory.mktemp("named") / "r")
    samples = make_samples(LETTERS, values={"attention_deviation": [0.1] * 8})
    for number, name in enumerate(NAMES):
        record = make_record(samples, model=f"model {number}")
        known = record.model.model_dump() | {"name": name, "id": f"digits/Linf-0.2/{name}"}
        model = type(record.model).model_validate(known)
        store.write(record.model_copy(update={"model": model}), samples)
    return store


def of(item: StoredRecord, marks: str) -> bool:
    """Whether the name of its model has one of these characters."""
    return any(mark in item.record.model.name for mark in marks)


def test_a_name_is_text_in_tables_and_pages(named: Store, tmp_path: Path) -> None:
    files = publish(named, plots=False).files
    assert all(path.resolve().is_relative_to(named.folder) for path in files)
    for path in files:
        if path.suffix == ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            for value in frame.to_numpy().ravel():
                assert uncell(value) == value or value.startswith("'")
                assert not value.startswith(("=", "@", "\t")), value
        if path.suffix == ".html":
            assert "<script>alert" not in path.read_text()
    (tmp_path / "b.csv").write_bytes(leaderboard_csv(build_leaderboard(named)))
    shown = set(read_leaderboard(tmp_path / "b.csv")["model"])
    assert shown == {visible(name) for name in NAMES}


def test_a_name_is_text_on_the_console_and_in_exports(named: Store, tmp_path: Path) -> None:
    for words in (
        ["results", "list"],
        ["leaderboard", "--no-plots"],
        *(
            ["results", "show", item.record.key]
            for item in named.records()
            if of(item, "\x1b\u202e")
        ),
    ):
        done = invoke(*words, "--results", named.folder)
        assert done.code == 0, done.err
        assert not any(mark in done.out + done.err for mark in "\x1b\x07\u202e")
    done = invoke(
        *("export", "--format", "robustbench", "--out", tmp_path / "out"),
        *("--results", named.folder),
    )
    assert done.code == 0, done.err
    written = list((tmp_path / "out").rglob("*.json"))
    assert len(written) == len(NAMES)
    assert all(len(path.relative_to(tmp_path / "out").parts) == 3 for path in written)


def test_a_name_is_text_in_figures(
    named: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What means something to XML, fonts, formulas or a folder is in the figures of all models.

    Of a model's own, that of the first is rendered.
    """
    rendered, written = [], style.save

    def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
        own = stem.name.startswith("confusion")
        if own and any(path.name.startswith("confusion") for path in rendered):
            return render_nothing(stem)
        files = written(figure, stem)
        rendered.extend(files)
        return files

    monkeypatch.setattr(style, "save", save)
    savefig = Figure.savefig

    @wraps(savefig)
    def laid_out_or_drawn(figure: Figure, file: Any, *, format: str, **how: Any) -> None:
        """The SVG; of the PNG the layout alone, and that of one figure, as names are measured alike."""
        layout = figure.get_layout_engine()
        if format == "svg":
            savefig(figure, file, format=format, **how)
        elif layout is not None and figure.get_suptitle().startswith("Accuracy by attack"):
            layout.execute(figure)

    monkeypatch.setattr(Figure, "savefig", laid_out_or_drawn)
    shown = [item for item in named.records() if of(item, '\x1b\u202e"<$/名x')]
    files = render.render_plots(collect(shown), tmp_path / "plots")
    own = [path for path in files if path.name.startswith("confusion")]
    assert len(own) == len(set(own)) == 2 * len(shown)
    assert 6 < len(shown) < len(NAMES)
    assert all(path.resolve().is_relative_to(tmp_path / "plots") for path in files)
    pictures = [path for path in rendered if path.suffix == ".svg"]
    assert len(pictures) == (len(files) - len(own)) // 2 + 1
    for path in pictures:
        ElementTree.parse(path)


def render_nothing(stem: Path) -> tuple[Path, Path]:
    written = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    for path in written:
        path.write_bytes(b"")
    return written


def test_cells_of_numbers_stay_numbers() -> None:
    frame = pd.DataFrame({"a": ["-0.5", "=1", "'x", None, "-x"], "=b": [1.5, -2.0, 3, 4, 5]})
    assert csv_bytes(frame).decode().splitlines() == [
        "a,'=b",
        "-0.5,1.5",
        "'=1,-2.0",
        "''x,3.0",
        ",4.0",
        "'-x,5.0",
    ]
    for text in ("=1", "'x", "x", "-1e3", "－１"):
        assert uncell(cell(text)) == text


@pytest.mark.parametrize("name", ["a|b", "**bold**", "[a](b)", "<b>", "`c`", "x\\|y", "a\n# b"])
def test_a_name_in_a_markdown_table_is_one_cell_without_markup(name: str) -> None:
    """Its visible characters are there, each that means something to Markdown behind a backslash."""
    written = markdown(name)
    assert "\n" not in written
    assert re.sub(r"\\(.)", r"\1", written) == visible(name)
    assert not re.search(r"(?<!\\)(\\\\)*[`*\[\]<>|~]", written)
    assert markdown("agkd_bml-2 (ours) 0.5") == "agkd_bml-2 (ours) 0.5"


def test_file_names_lead_nowhere() -> None:
    for name in ("", ".", "..", "../x", "/x", "a/b", "x" * 999, "\0", "~", ".hidden", "a\\b"):
        made = file_name(name)
        assert made == Path(made).name
        assert made not in ("", ".", "..")
        assert len(made) <= 100
        assert (Path("/base") / made).parent == Path("/base")


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), unique_by=str.casefold, max_size=5))
def test_no_two_names_are_one_file(names: list[str]) -> None:
    names = [*names, *(f"{name}{'x' * 100}" for name in names)]
    used: set[str] = set()
    made = [unused_file_name(name, used, "x") for name in [*names, *names]]
    assert len({name.casefold() for name in made}) == 2 * len(names)
    own = [file_name(name) for name in names]
    assert len(set(own)) == len(names)
    assert [file_name(name) for name in names] == own


def test_models_whose_names_differ_in_other_scripts_are_exported_to_files_of_their_own(
    tmp_path: Path,
) -> None:
    samples = make_samples(LETTERS)
    store = Store(tmp_path / "r")
    for name in ("模型", "名前", "model", "MODEL", "mödel", "m_del"):
        record = make_record(samples, model=name)
        store.write(record, samples)
    out = tmp_path / "out"
    done = invoke("export", "--format", "robustbench", "--out", out, "--results", tmp_path / "r")
    assert done.code == 0, done.err
    written = list((tmp_path / "out").rglob("*.json"))
    assert len(written) == 6
    assert len({path.name.casefold() for path in written}) == 6


def test_a_comparison_without_matplotlib_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        stored(tmp_path / "r", model=name)
    monkeypatch.setitem(sys.modules, "robench.inspection.comparison_pictures", None)
    done = invoke(
        *("compare", "one", "two", "--results", tmp_path / "r", "--pictures", tmp_path / "p")
    )
    assert done.code == 0, done.err
    assert "no figures" in done.err
    assert "two" in done.out


BROKEN = [{"MPLBACKEND": "nonsense"}, {"MATPLOTLIBRC": "rc"}, {"MPLCONFIGDIR": "/proc/none"}]
ALL = {name: value for variables in BROKEN for name, value in variables.items()}


@pytest.mark.parametrize(
    "variables", [ALL, *(pytest.param(v, marks=pytest.mark.slow) for v in BROKEN)], ids=" ".join
)
def test_a_matplotlib_that_does_not_work_is_no_failure(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    stored(tmp_path / "r")
    (tmp_path / "rc").write_text("text.usetex: True\naxes.grid: what\nfigure.dpi: -1\n")
    words = ("leaderboard", "--results", "r")
    done = in_a_fresh_process(invoke, *words, folder=tmp_path, variables=variables)
    assert done.code == 0, done.err
    assert ("no figures: " in done.err) == ("MPLBACKEND" in variables)
    assert (tmp_path / "r/index.html").is_file()
