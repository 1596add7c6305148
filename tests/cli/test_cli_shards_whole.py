"""The leaderboard of digits models, under a short ``standard``: one process, forks, shards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from invoke_cli import invoke

from robench.results import Store

pytestmark = pytest.mark.slow

N = 60
COST = ["forwards", "backwards", "seconds"]
SUITE = """
name = "shortened"
[[attacks]]
name = "fgsm"
attack = "pgd"
params = { steps = 1, relative_step_size = 1.0, random_start = false }
[[attacks]]
name = "pgd-20"
attack = "pgd"
params = { steps = 20 }
[[attacks]]
name = "fmn"
attack = "fmn"
params = { steps = 20 }
[[attacks]]
name = "autoattack"
stages = [
    { name = "apgd-ce", attack = "apgd", params = { loss = "ce", steps = 20 } },
    { name = "apgd-t", attack = "apgd", params = { loss = "dlr-targeted", steps = 20, targets = 3 } },
    { name = "fab-t", attack = "fab", params = { steps = 10, targets = 3 } },
    { name = "square", attack = "square", params = { queries = 200 } },
]
"""


@pytest.fixture(scope="module", autouse=True)
def suite(tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "shortened.toml").write_text(SUITE)
    with contextlib.chdir(folder):
        yield


def run(folder: Path, *options: object) -> None:
    done = invoke(
        *("run", "standard", "pgd-at", "mart", "--suite", "shortened.toml", "--n", N),
        *("--device", "cpu", "--precision", "fp32", "--no-plots", "--results", folder),
        *options,
    )
    assert done.code == 0, done.err


def board(folder: Path) -> pd.DataFrame:
    done = invoke("leaderboard", "--results", folder, "--no-plots")
    assert done.code == 0, done.err
    return pd.read_csv(folder / "leaderboard.csv", dtype=str).drop(columns=COST)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, "--workers", 1)
    return folder


def assert_same(one: Path, other: Path) -> None:
    """As printed, and sample by sample: verdicts, predictions and what broke them."""
    pd.testing.assert_frame_equal(board(one), board(other))
    mine, theirs = Store(one), Store(other)
    assert mine.keys() == theirs.keys()
    names = ["sample_id", "outcome", "clean_prediction", "adv_prediction", "broken_by"]
    for key in mine.keys():  # noqa: SIM118 - a store is no mapping
        tables = (store.read(key).table[names] for store in (mine, theirs))
        pd.testing.assert_frame_equal(*tables)


def test_two_forks(whole, tmp_path):
    run(tmp_path, "--workers", 2)
    assert_same(whole, tmp_path)


@pytest.mark.parametrize("count", [1, 3])
def test_shards_in_any_order(whole, tmp_path, count):
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    for index in order:
        run(tmp_path / str(index % 2), "--workers", 1, "--shard", f"{index}/{count}")
    folders = sorted(tmp_path.iterdir(), reverse=True)
    out = tmp_path / "merged"
    done = invoke("results", "merge", *folders, "--results", out)
    assert done.code == 0, done.err
    assert_same(whole, out)
