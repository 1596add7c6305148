"""How soon the page opens in a browser, and answers.

A folder of 40 models at three radii, n = 500, three attacks each, made without attacking anything; and the
committed page. Times are the browser's own: opening, from the navigation to the first frame after
the script has run; each filter, from the input to the frame that shows its rows, the median of five. Fails
where opening takes 2 seconds or a filter 100 ms. Run by hand, on an idle machine::

    python benchmarks/page.py
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.page import build_page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from page_browser import lacking, opened_browser  # noqa: E402
from page_records import page_records  # noqa: E402

RADII = ("2/255", "4/255", "8/255")
OPENING, FILTERING = 2000, 100
"""The most that they may take, in ms"""

_FRAME = "await new Promise(done => requestAnimationFrame(() => setTimeout(done)));"
_OPENED = f"async () => {{ {_FRAME} return performance.now(); }}"
_SET = f"""async ([name, value]) => {{
  const field = document.querySelector("#filters").elements[name], begin = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", {{ bubbles: true }}));
  {_FRAME}
  return performance.now() - begin;
}}"""
_VIEW = f"""async view => {{
  const begin = performance.now();
  location.hash = `view=${{view}}`;
  await new Promise(done => addEventListener("hashchange", done, {{ once: true }}));
  {_FRAME}
  return performance.now() - begin;
}}"""
STEPS = (
    ("search, the first letter", "q", "m"),
    ("search, a model", "q", "model-17"),
    ("search, what flags say", "q", "12 of 100"),
    ("search, nothing left", "q", "no such thing"),
    ("search, cleared", "q", ""),
    ("one radius", "eps", "4/255"),
    ("one defense", "defense", "trades"),
    ("any radius", "eps", ""),
    ("any defense", "defense", ""),
)


def fabricated(models: int, n: int) -> tuple[str, float]:
    """The page, and the seconds that building it took."""
    names = [f"model-{number}" for number in range(models)]
    records = list(page_records(names, RADII, n=n))
    begin = time.perf_counter()
    page = build_page(build_leaderboard(records), results=collect(records))
    return page, time.perf_counter() - begin


def measured(opened: Any, file: Path, runs: int = 5) -> dict[str, float]:
    """Milliseconds by step, medians of ``runs``; ``opening`` is one."""
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        page = opened.show(file)
        found.setdefault("opening", []).append(page.evaluate(_OPENED))
        for step, name, value in STEPS:
            if page.evaluate("name => !!document.querySelector('#filters').elements[name]", name):
                found.setdefault(step, []).append(page.evaluate(_SET, [name, value]))
        for view in ("model", "compare", "samples", "board"):
            found.setdefault(f"view {view}", []).append(page.evaluate(_VIEW, view))
    return {step: statistics.median(times) for step, times in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--n", type=int, default=500)
    arguments = parser.parse_args()
    if (reason := lacking()) is not None:
        sys.exit(reason)
    content, seconds = fabricated(arguments.models, arguments.n)
    committed = ROOT / "results" / "index.html"
    with tempfile.TemporaryDirectory() as folder, opened_browser() as opened:
        many = Path(folder) / "index.html"
        many.write_text(content, "utf-8")
        times = [measured(opened, file) for file in (many, committed)]
        sizes = [file.stat().st_size / 1e6 for file in (many, committed)]
        version = opened.page.context.browser.version
    print("# Opening and filtering the page\n")
    print(
        f"{arguments.models} models at {len(RADII)} radii, n = {arguments.n}, three attacks, without "
        f"pictures: {sizes[0]:.1f} MB, built in {seconds:.1f} s. The committed page: {sizes[1]:.1f} MB.\n"
    )
    print("| ms | many models | committed page |\n|---|---:|---:|")
    for step in times[0]:
        print(f"| {step} | {times[0][step]:.0f} | {times[1][step]:.0f} |")
    print(
        f"\n`python benchmarks/page.py`, {date.today()}; Chromium {version}, Python "
        f"{platform.python_version()}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors."
    )
    slow = [
        step
        for found in times
        for step, took in found.items()
        if took >= (OPENING if step == "opening" else FILTERING) and not step.startswith("view")
    ]
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
