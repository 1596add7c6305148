from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kill_campaign
import pytest
from forks import in_a_fork

from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.results import Store

TIMES = ("seconds", "samples_per_second", "peak_memory_mib", "created", "git")
"""What may differ: times, memory, and the working tree's state, which may move on meanwhile."""
BATCH = 50
STEP_PASSES = 12
"""Passes of one batch in a step at most: Square asks up to eight queries of a search at once."""


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if k not in TIMES}
    if isinstance(content, list):
        return [without_times(item) for item in content]
    return content


def records(folder: Path) -> dict[str, Any]:
    found = {}
    store = Store(folder)
    for key in store.keys():  # noqa: SIM118 - a store is no mapping
        document = json.loads(store.path_of(key).read_text())
        del document["checksum"]
        found[key] = without_times(document)
    return found


def csv_without_times(folder: Path) -> bytes:
    frame = build_leaderboard(Store(folder))
    return leaderboard_csv(frame.drop(columns=["seconds"]))


@pytest.mark.usefixtures("unexamined")
@pytest.mark.parametrize(
    ("signals", "stops", "samples"),
    [
        pytest.param(["INT", "KILL", "TERM"], -1, 6, id="each-attack", marks=pytest.mark.slow),
        pytest.param(
            ["INT", "KILL", "TERM"], 0, 12, id="each-in-each-attack", marks=pytest.mark.slow
        ),
        pytest.param(["KILL"], 50, 200, id="killed", marks=pytest.mark.slow),
        pytest.param(["INT"], 50, 200, id="interrupted", marks=pytest.mark.slow),
        pytest.param(["TERM"], 20, 200, id="terminated", marks=pytest.mark.slow),
    ],
)
def test_stopped_runs_end_like_an_unbroken_one(
    signals: list[str], stops: int, samples: int, tmp_path: Path
) -> None:
    # A fork, as torch is loaded here; the campaign's own processes are forks of it.
    cost = in_a_fork(lambda: kill_campaign.main(tmp_path, stops, 0, samples, signals))
    stopped = sum(cost["stopped"].values())
    assert stopped >= {0: 9, -1: 3}.get(stops, stops)
    assert min(cost["stopped"].values()) > 0
    expected = records(tmp_path / "reference")
    assert len(expected) == 3
    # Data files are named by their content's checksum: equal names are equal bytes.
    names = {p.name for p in (tmp_path / "reference" / "records").rglob("*.*") if p.is_file()}
    for number in range(cost["rounds"]):
        folder = tmp_path / str(number)
        assert records(folder) == expected
        assert {p.name for p in (folder / "records").rglob("*.json")} == {
            name for name in names if name.endswith(".json")
        }
        assert csv_without_times(folder) == csv_without_times(tmp_path / "reference")
        assert not list((folder / "quarantine").glob("*"))
        assert not list((folder / "progress").glob("*.bin"))
        Store(folder).prune(older_than=-1)
        kept = {p.name for p in folder.rglob("*") if p.is_file()}
        assert not [name for name in kept if re.search(r"\.tmp$|\.draft\.", name)]
    # A stop costs the clean pass, what follows the search, and one batch; never the search.
    lost = cost["start"] + cost["outside"] + STEP_PASSES * min(BATCH, samples)
    assert cost["total"] <= cost["rounds"] * cost["reference"] + stopped * lost
