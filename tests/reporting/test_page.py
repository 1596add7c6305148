from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from record_factory import make_stored

from robench.errors import StoreError
from robench.records import Flag, MetricSummary
from robench.reporting.findings import attention_findings, representation_findings
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.page import build_page
from robench.results import StoredRecord

SEVERE = Flag(name="zero_gradients", severity="severe", evidence="12 of 100", count=12)
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects cells, addresses and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def board() -> pd.DataFrame:
    metrics = {"attention_deviation": MetricSummary(mean=0.25, n=4)}
    return build_leaderboard(
        [
            make_stored("SSSB", model="good", metrics=metrics),
            make_stored("SBBE", model="bad", flags=[SEVERE]),
            make_stored("SSBB", model="other", threat="Linf-8/255"),
        ]
    )


def test_page_shows_the_leaderboard() -> None:
    page = Reader(build_page(board()))
    for text in ("good", "75.00", "0.2500", "errored:1, zero_gradients(severe)", "20,000"):
        assert text in page.cells
    assert page.tags.count("table") == 2
    assert page.tags.count("script") == 2  # what is shown, as data, and what shows it


def test_page_fetches_nothing(tmp_path: Path) -> None:
    picture = tmp_path / "plots" / "accuracy_by_attack.png"
    picture.parent.mkdir()
    picture.write_bytes(b"\x89PNG fake")
    page = Reader(build_page(board(), figures=[picture]))
    outside = [address for address in page.addresses if not address.startswith("#")]
    assert len(outside) == 2
    assert all(address.startswith("data:") for address in outside)
    encoded = outside[1].partition("base64,")[2]
    assert base64.b64decode(encoded) == picture.read_bytes()


def test_names_from_strangers_are_escaped() -> None:
    stored = make_stored("SB")
    evil = stored.record.model.model_copy(update={"name": "<script>alert(1)</script>"})
    frame = build_leaderboard(
        [StoredRecord(stored.record.model_copy(update={"model": evil}), stored.arrow)]
    )
    page = Reader(build_page(frame, title="<b>"))
    assert page.tags.count("script") == 2
    assert "b" not in page.tags
    assert "<script>alert(1)</script>" in page.cells


def test_findings_are_listed_also_where_they_do_not_hold() -> None:
    values = {"attention_deviation": [0.1, 0.9, 0.2, 0.8]}
    metrics = {"attention_deviation": MetricSummary(mean=0.5)}
    results = collect([make_stored("SBSB", values=values, metrics=metrics)])
    page = Reader(
        build_page(
            board(),
            tables={
                "findings": attention_findings(results),
                "associations": representation_findings(results),
            },
        )
    )
    assert page.tags.count("table") == 4
    assert "not shown" in page.cells
    assert "undefined" in page.cells


def test_a_table_from_outside_is_shown_as_it_is() -> None:
    frame = pd.DataFrame({"model": ["<i>odd</i>", "plain"], "half_life": [0.123456, None]})
    page = Reader(build_page(board(), tables={"decay": frame, "nothing": frame[:0]}))
    assert page.tags.count("table") == 3
    assert "i" not in page.tags
    assert page.cells[-4:] == ["<i>odd</i>", "0.1235", "plain", ""]


def test_empty_page_says_what_to_do() -> None:
    text = build_page(build_leaderboard([]))
    Reader(text)
    assert "robench run" in text


def test_same_records_same_page() -> None:
    assert build_page(board(), title="Digits") == build_page(board(), title="Digits")


def test_missing_and_strange_figures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read the figure"):
        build_page(board(), figures=[tmp_path / "none.png"])
    with pytest.raises(StoreError, match="cannot embed"):
        build_page(board(), figures=[tmp_path / "x.exe"])
