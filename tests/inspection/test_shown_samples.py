from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from invoke_cli import invoke
from record_factory import make_stored

from robench.datasets.digits import load_digits
from robench.inspection.shown_samples import keep_shown_samples
from robench.request import Request
from robench.results import Store
from robench.results.clean_samples import read_clean_samples


def test_clean_samples_are_kept_once_a_data_set(tmp_path: Path) -> None:
    digits = load_digits("test").subset(70)
    store, unknown = Store(tmp_path), make_stored("SB", dataset="nobodys").record.dataset
    gaps = keep_shown_samples(store, [digits.spec(), unknown, digits.spec()], Request())
    (gap,) = gaps
    assert "no clean samples of nobodys in the page" in gap
    assert len(list((tmp_path / "samples").iterdir())) == 1
    kept = read_clean_samples(store, digits.fingerprint)
    assert kept is not None
    assert kept.sample_ids == tuple(digits.sample_ids)
    assert np.array_equal(kept.images[:, :, :, 0], (255 * digits.batch(range(70))[:, 0]).round())


def test_other_samples_under_the_name_are_not_taken(tmp_path: Path) -> None:
    spec = load_digits("test").subset(10).spec().model_copy(update={"fingerprint": "0" * 64})
    (gap,) = keep_shown_samples(Store(tmp_path), [spec], Request())
    assert "the fingerprints differ" in gap
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("other", [["--no-plots"], ["--eps", "0.1"]])
def test_samples_without_the_page_are_refused(tmp_path: Path, other: list[str]) -> None:
    result = invoke("leaderboard", "--results", str(tmp_path), "--samples", *other)
    assert result.code == 2
    assert "--samples is for the page of all records" in result.err
