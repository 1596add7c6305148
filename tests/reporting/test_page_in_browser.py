"""The page in a real browser: every control does something, and nothing complains."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from page_browser import Opened, lacking, opened_browser
from page_records import keep_pictures, page_inputs, page_records
from record_factory import make_stored

import robench
from robench.formatting import fixed
from robench.records import Outcome
from robench.reporting.compare import compare_models, comparison_markdown
from robench.reporting.explorer.contents import result_id
from robench.reporting.explorer.pictures import explorer_pictures
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import ModelResult, collect
from robench.reporting.page import build_page
from robench.results import Store
from robench.statistics import (
    PairedCounts,
    mcnemar,
    smallest_difference,
    tango_interval,
    wilson,
)

if (_reason := lacking()) is not None:
    pytest.skip(_reason, allow_module_level=True)

MODEL = "<img src=x onerror=alert(1)>"
CLASSES = ("</script><script>alert(2)</script>", "dog & <b>cat</b>", "{{ 7 * 7 }}")
DATASET = '"><i onclick=alert(3)>data</i>'
RECORDS = list(page_records([MODEL, "plain", "other"], dataset=DATASET, classes=CLASSES))
INPUTS = page_inputs()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models at two radii; all names are hostile."""
    folder = tmp_path_factory.mktemp("page")
    results = collect(keep_pictures(Store(folder), RECORDS, INPUTS))
    pictures = explorer_pictures(results, Store(folder))
    page = build_page(build_leaderboard(RECORDS), results=results, pictures=pictures)
    path = folder / "index.html"
    path.write_text(page, "utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Opened]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _nothing_complains(browser: Opened) -> Iterator[None]:
    browser.said.clear()
    browser.fetched.clear()
    yield
    # It is the tests that read canvases back.
    assert [text for text in browser.said if not text.startswith("Canvas2D: ")] == []
    assert [
        url for url in browser.fetched if not url.startswith(("file:", "data:", "about:"))
    ] == []


def shown_models(page: Any) -> list[str]:
    return page.eval_on_selector_all(
        "table.board tbody tr:not([hidden])", "rows => rows.map(row => row.cells[1].innerText)"
    )


def test_search_and_filters_leave_the_rows_that_fit(browser: Opened, file: Path) -> None:
    page = browser.show(file)
    assert len(shown_models(page)) == 6
    page.fill("[name=q]", "plain 0.2")
    assert shown_models(page) == ["plain"]
    page.fill("[name=q]", "12 of 100 <b>are")  # evidence, which no cell shows
    assert shown_models(page) == [MODEL, MODEL]
    page.fill("[name=q]", "")
    page.select_option("[name=defense]", "trades")
    page.select_option("[name=eps]", "0.1")
    assert shown_models(page) == ["plain"]
    assert page.inner_text("output") == "1 of 6 rows"
    assert page.locator("#view-board h2:visible").count() == 1
    page.select_option("[name=flag]", "zero_gradients")
    assert shown_models(page) == []
    assert "Nothing matches" in page.inner_text("output")
    page.click("text=Clear")
    assert len(shown_models(page)) == 6


def test_an_address_leads_to_what_was_seen(browser: Opened, file: Path) -> None:
    page = browser.show(file)
    page.fill("[name=q]", "plain")
    page.click("#columns summary")
    page.uncheck("fieldset input[value=clean_acc]")
    page.check("fieldset input[value=parameters]")
    page.keyboard.press("Escape")
    page.click("th:visible >> text=robust %")
    state = page.evaluate("location.hash").removeprefix("#")
    again = browser.show(file, state)
    assert again.input_value("[name=q]") == "plain"
    assert again.locator("th:visible >> text=parameters").count() == 2
    assert again.locator("th:visible >> text=clean %").count() == 0
    assert again.locator("th[aria-sort=descending]").count() == 2
    again.click("table.board a:visible >> nth=0")
    assert again.inner_text("#view-model h2") == "plain"
    again.go_back()
    assert shown_models(again) == ["plain", "plain"]


def test_columns_sort_both_ways_and_back(browser: Opened, file: Path) -> None:
    page = browser.show(file)
    first = shown_models(page)
    page.click("th:visible >> text=model >> nth=0")
    assert shown_models(page)[:3] == ["plain", "other", MODEL]
    page.click("th:visible >> text=model >> nth=0")
    assert shown_models(page)[:3] == [MODEL, "other", "plain"]
    page.click("text=Clear")
    assert shown_models(page) == first


def test_a_panel_says_what_the_records_hold(browser: Opened, file: Path) -> None:
    page = browser.show(file, "view=model")
    text = page.inner_text("#view-model")
    assert f"\n{MODEL}\n" in text
    assert "zero_gradients (severe): 12 of 100 <b>are</b> zero in autoattack, fgsm, pgd-20" in text
    for name in (*CLASSES, DATASET):
        assert name in text
    curve = page.get_attribute("svg.curve", "aria-label")
    assert curve.startswith(f"Robust accuracy of {MODEL}: ")
    assert curve.endswith("at 0.2")
    assert page.locator("#view-model :is(b, i, img, script)").count() == 0
    page.select_option("[name=attack]", "pgd-20")
    assert "Classes under pgd-20" in page.inner_text("#view-model")
    assert "Attention deviation" in page.inner_text("#view-model")


def test_the_keyboard_keeps_its_place(browser: Opened, file: Path) -> None:
    page = browser.show(file, "view=samples")
    page.focus("[name=outcome]")
    for expected in ("clean error", "broken"):
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.name") == "outcome"
        assert page.input_value("[name=outcome]") == expected
    page.select_option("[name=outcome]", "")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    assert "13 to 24 are shown" in page.inner_text("#view-samples output")
    page.keyboard.press("ArrowLeft")
    assert "1 to 12 are shown" in page.inner_text("#view-samples output")


@pytest.mark.slow
def test_many_models_are_one_small_page(browser: Opened, tmp_path: Path) -> None:
    """How long it takes to open and to filter is measured by ``benchmarks/page.py``."""
    radii = ("2/255", "4/255", "8/255")
    records = list(page_records([f"model-{number}" for number in range(40)], radii, n=500))
    content = build_page(build_leaderboard(records), results=collect(records))
    assert len(content.encode()) < 10_000_000
    path = tmp_path / "many.html"
    path.write_text(content, "utf-8")
    page = browser.show(path, "view=samples")
    assert "500 of 500 samples" in page.inner_text("#view-samples output")
    page = browser.show(path)
    assert len(shown_models(page)) == 120
    page.fill("[name=q]", "model-17 8/255")
    assert shown_models(page) == ["model-17"]


def test_keys_and_theme(browser: Opened, file: Path) -> None:
    page = browser.show(file, "view=reports")
    page.keyboard.press("/")
    page.keyboard.type("other")
    assert shown_models(page) == ["other", "other"]
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    assert page.is_visible("#view-model")
    colour = "getComputedStyle(document.body).backgroundColor"
    seen = []
    for name in ("light", "dark", "system"):
        page.click("#theme")
        assert page.inner_text("#theme") == f"Theme: {name}"
        seen.append(page.evaluate(colour))
    assert seen[0] != seen[1]


def compared_cells(text: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0].endswith("_acc") and "worst" not in row[0]]


def test_a_comparison_says_what_the_command_says(browser: Opened, file: Path) -> None:
    """Of accuracies, cell by cell; the command compares the worst classes and metrics too."""
    for baseline, other in itertools.pairwise(results_at(0.2)):
        state = f"view=compare&model={result_id(baseline)}&with={result_id(other)}"
        page = browser.show(file, state)
        shown = page.eval_on_selector_all(
            "#view-compare tbody tr",
            "rows => rows.map(row => [...row.cells].map(c => c.innerText))",
        )
        said = comparison_markdown(compare_models(baseline, [other]))
        assert shown == compared_cells(said)
        text = page.inner_text("#view-compare")
        assert said.split("\n\n")[-1].split("\n")[-1].strip() in text
        page.click("text=Swap")
        assert page.input_value("[name=with]") == result_id(baseline)


def results_at(radius: float) -> list[ModelResult]:
    return [result for result in collect(RECORDS) if result.group.eps == radius]


def test_samples_are_chosen_by_what_became_of_them(browser: Opened, file: Path) -> None:
    one, two, _ = results_at(0.2)
    page = browser.show(file, f"view=samples&model={result_id(one)}")

    def found() -> int:
        return int(page.inner_text("#view-samples output").split()[0])

    assert found() == one.n
    for outcome in ("broken", "survived", "clean error"):
        page.select_option("[name=outcome]", outcome)
        survived, clean = one.robust, one.clean_correct
        expected = {"broken": clean & ~survived, "survived": survived, "clean error": ~clean}
        assert found() == expected[outcome].sum(), outcome
    page.select_option("[name=outcome]", "")
    page.select_option("[name=class]", "1")
    assert found() == (one.labels == 1).sum()
    page.select_option("[name=class]", "")
    page.select_option("[name=beside]", result_id(two))
    assert found() == (one.robust != two.robust).sum()
    page.select_option("[name=outcome]", "only-second")
    assert found() == (~one.robust & two.robust).sum()
    page.select_option("[name=beside]", "")
    page.select_option("[name=attack]", "fgsm")
    page.select_option("[name=broke]", "fgsm (toy)")
    assert found() == one.outcome_is("fgsm", Outcome.BROKEN).sum()
    text = page.inner_text("article >> nth=0")
    assert "broken by fgsm (toy)" in text
    assert "margin -0.25, size 0.1" in text


def test_pictures_are_the_kept_inputs(browser: Opened, file: Path) -> None:
    """Pixel by pixel: the clean image, the adversarial one to a fourteenth of ε, and the difference."""
    one, *_ = results_at(0.2)
    page = browser.show(file, f"view=samples&model={result_id(one)}&attack=pgd-20&id=00001")
    page.wait_for_function("document.querySelectorAll('article canvas').length === 3")
    clean, adversarial, change = drawn(page)
    expected = np.rint(255 * INPUTS[1, 0])
    assert np.array_equal(clean, expected)
    moved = adversarial.astype(float) - clean
    assert set(np.abs(moved).ravel()) <= {50, 51, 52}
    assert set(change[moved > 0]) == {255}
    assert set(change[moved < 0]) == {0}
    page = browser.show(file, f"view=samples&model={result_id(one)}&attack=autoattack&id=00001")
    names = page.locator("article figcaption").all_inner_texts()
    assert names == [*PICTURES, "attention, clean", "attention, adversarial"]
    page = browser.show(file, f"view=samples&model={result_id(one)}&attack=autoattack&id=00009")
    assert page.locator("article figcaption").all_inner_texts() == ["clean"]
    assert "--save-adversarial" in page.inner_text("#view-samples")


PICTURES = ("clean", "adversarial", "difference")


def drawn(page: Any) -> list[npt.NDArray[np.uint8]]:
    """The grey values of the canvases, once each is painted."""
    read = """() => [...document.querySelectorAll("article canvas")].map(canvas => [...canvas
      .getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data])"""
    page.wait_for_function(f"({read})().every(pixels => pixels.some(Boolean))")
    return [np.array(pixels, np.uint8).reshape(6, 6, 4)[..., 0] for pixels in page.evaluate(read)]


def test_what_cannot_be_compared_is_left_out_with_the_reason(
    browser: Opened, tmp_path: Path
) -> None:
    records = [
        make_stored("SSBS", model="one", attack="pgd-20"),
        make_stored("SBBS", model="one", attack="cw", params={"steps": 10}),
        make_stored("SSSS", model="two", attack="cw"),
        make_stored("SBSB", model="two", attack="pgd-20"),
        make_stored("SBSB", model="two", attack="fgsm"),
    ]
    one, two = collect(records)
    path = tmp_path / "page.html"
    path.write_text(build_page(build_leaderboard(records), results=[one, two]), "utf-8")
    page = browser.show(path, f"view=compare&model={result_id(one)}")
    notes = compare_models(one, [two]).notes
    assert page.locator("#view-compare li").all_inner_texts() == list(notes)
    assert len(notes) == 2


def test_statistics_are_those_of_python(browser: Opened) -> None:
    scripts = Path(robench.__file__).parent / "reporting/templates/explorer"
    cells = [0, 1, 7, 400]
    asked = [c for c in itertools.product(cells, repeat=4) if sum(c)]
    values = [0.05, 2.675, 77.0 - 1e-13, 1e-9, 123456.789, -0.04, 76.95, 1 / 3, 99.995, 0.0]
    browser.page.goto("about:blank")
    for name in ("numbers", "statistics"):
        browser.page.add_script_tag(path=scripts / f"{name}.js")
    found, texts = browser.page.evaluate(
        """([asked, values]) => [asked.map(([both, onlyFirst, onlySecond, neither]) => {
          const counts = { both, onlyFirst, onlySecond, neither }, n = both + onlyFirst + onlySecond + neither;
          const { low, high } = tangoInterval(counts), share = wilson(onlyFirst, n);
          const least = smallestDifference(n, (onlyFirst + onlySecond) / n);
          return [mcnemar(counts), low, high, share.low, share.high, least ?? -1];
        }), values.flatMap(value => [0, 1, 3].map(digits => fixed(value, digits, "+")))]""",
        [asked, values],
    )
    assert texts == [fixed(value, digits, "+") for value in values for digits in (0, 1, 3)]
    for counts, row in zip((PairedCounts(*c) for c in asked), found, strict=True):
        tango, share = tango_interval(counts), wilson(counts.only_first, counts.n)
        least = smallest_difference(counts.n, counts.discordant / counts.n)
        expected = [mcnemar(counts), tango.low, tango.high, 100 * share.low, 100 * share.high]
        expected.append(-1 if least is None else least)
        assert row == pytest.approx(expected, rel=1e-8, abs=1e-9), counts


# Quick is the view with controls of every kind; other tests touch what is in the others.
@pytest.mark.parametrize(
    "view",
    [
        "samples",
        *(
            pytest.param(view, marks=pytest.mark.slow)
            for view in ("board", "model", "compare", "reports")
        ),
    ],
)
def test_every_control_does_its_work_without_a_complaint(
    browser: Opened, file: Path, view: str
) -> None:
    page = browser.show(file, f"view={view}")
    place = ":is(header, #view-board)" if view == "board" else f"#view-{view}"
    for summary in page.locator(f"{place} summary:visible").all():
        summary.click()
    # The many columns at once, and back.
    page.eval_on_selector_all("#columns input", "boxes => [...boxes, ...boxes].map(b => b.click())")
    for kind in ("select", "button", ".controls input", "input[type=search]", "a"):
        controls = page.locator(f"{place} {kind}:visible:not([disabled])")
        for number in range(controls.count()):
            control = controls.nth(number)
            if not control.count():
                continue  # an earlier one closed or changed what it stood in
            assert control.evaluate(NAME), control.evaluate("node => node.outerHTML")
            if kind == "select":
                control.select_option(index=control.locator("option").count() - 1)
            elif kind.endswith("search]"):
                control.fill("x")
            elif kind != "a" or not (control.get_attribute("href") or "").startswith("data:"):
                control.click()
            if f"view={view}" not in page.evaluate("location.hash"):
                page.evaluate(f"location.hash = 'view={view}'")


NAME = """node => (node.labels?.[0]?.innerText || node.innerText || node.getAttribute("aria-label") || "")
  .trim().length > 0"""
