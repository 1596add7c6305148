"""Alignment, exclusion and separation against all pairs written out."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_values import columns_on, representation_values
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu
from torch import Tensor

import robench.representations.metrics as metrics
from robench.errors import UsageError
from robench.metric_catalogue import METRICS
from robench.representations import alignment, exclusion, separation


def drawn(n: int, d: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return centres[labels] + noise[0], centres[labels] + 1.5 * noise[1], labels


def written_out(features: Tensor, adv: Tensor, labels: Tensor) -> tuple[list[float], float]:
    """Exclusion of each sample and the AUC, from the full table of distances."""
    table = cdist(features.numpy(), adv.numpy(), "cosine")
    foreign = labels.numpy()[:, None] != labels.numpy()[None, :]
    outer = [float(row[mask].mean()) for row, mask in zip(table, foreign, strict=True)]
    own, other = np.diag(table), table[foreign]
    return outer, float(mannwhitneyu(other, own).statistic / (len(own) * len(other)))


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("n, classes", [(2, 2), (40, 3), (150, 10)])
def test_values_equal_all_pairs_written_out(n: int, classes: int) -> None:
    features, adv, labels = drawn(n, 6, classes)
    labels[:2] = torch.tensor([0, 1])
    outer, auc = written_out(features, adv, labels)
    table = cdist(features.numpy(), adv.numpy(), "cosine")
    np.testing.assert_allclose(alignment(features, adv).numpy(), np.diag(table), atol=1e-12)
    np.testing.assert_allclose(exclusion(features, adv, labels).numpy(), outer, atol=1e-12)
    assert separation(features, adv, labels).mean().item() == pytest.approx(auc, abs=1e-6)


def test_a_samples_separation_is_its_share_of_larger_foreign_distances() -> None:
    features, adv, labels = drawn(30, 5, 3, seed=4)
    table = cdist(features.numpy(), adv.numpy(), "cosine")
    other = table[labels.numpy()[:, None] != labels.numpy()[None, :]]
    expected = [(other > own).mean() for own in np.diag(table)]
    np.testing.assert_allclose(separation(features, adv, labels).numpy(), expected, atol=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    features, adv, labels = drawn(101, 7, 4)
    whole = separation(features, adv, labels)
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 350)
    assert torch.equal(separation(features, adv, labels), whole)


def test_perfect_features() -> None:
    labels = torch.arange(4).repeat(3)
    features = torch.eye(4)[labels]
    values = representation_values(features, 2 * features, labels)
    assert values["alignment"].tolist() == [0.0] * 12
    assert values["exclusion"].tolist() == [1.0] * 12
    assert values["separation"].tolist() == [1.0] * 12


def test_adversarial_examples_that_swap_classes() -> None:
    labels = torch.tensor([0, 1])
    features = torch.eye(2)
    values = representation_values(features, features.flip(0), labels)
    assert values["alignment"].tolist() == [1.0, 1.0]
    assert values["exclusion"].tolist() == [0.0, 0.0]
    assert values["separation"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsed_features_are_a_tie(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(1, 64, generator=generator, dtype=dtype)
    # The same direction at many lengths: rounding must not pass for order.
    features = one * torch.rand(50, 1, generator=generator, dtype=dtype).add(0.1)
    labels = torch.arange(50) % 5
    assert separation(features, features.flip(0), labels).tolist() == [0.5] * 50
    torch.testing.assert_close(
        alignment(features, features.flip(0)), torch.zeros(50, dtype=dtype), atol=1e-6, rtol=0
    )


def test_catalogue_names_what_is_returned() -> None:
    assert set(representation_values(*drawn(9, 4, 2))) == columns_on("features")


@settings(deadline=None)
@given(
    st.integers(2, 25),
    st.integers(1, 6),
    st.integers(2, 5),
    st.integers(0, 1000),
    st.sampled_from([1e-200, 1e-3, 1e200]),
)
def test_properties(n: int, d: int, classes: int, seed: int, scale: float) -> None:
    features, adv, labels = drawn(n, d, classes, seed)
    labels[:2] = torch.tensor([0, 1])
    values = representation_values(features, adv, labels)
    limits = {name: (METRICS[name].low, METRICS[name].high) for name in values}
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    again = representation_values(scale * features[order], adv[order] / scale, 7 * labels[order])
    for name, value in values.items():
        low, high = limits[name]
        assert ((value >= low) & (value <= high)).all()
        atol = 1e-9 if name != "separation" else 1.5 / n  # ties below the resolution
        torch.testing.assert_close(again[name], value[order], atol=atol, rtol=0)
    turn = torch.linalg.qr(torch.rand(d, d, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(alignment(features @ turn, adv @ turn), values["alignment"])


# --- undefined and hostile -------------------------------------------------------------------


def test_one_class_has_no_others() -> None:
    features, adv, _ = drawn(5, 3, 2)
    values = representation_values(features, adv, torch.zeros(5, dtype=torch.int64))
    assert not values["alignment"].isnan().any()
    assert values["exclusion"].isnan().all()
    assert values["separation"].isnan().all()


@pytest.mark.parametrize("hole", [0.0, math.nan, math.inf])
def test_samples_without_a_direction_are_left_out(hole: float) -> None:
    features, adv, labels = drawn(20, 4, 3)
    broken, broken_adv = features.clone(), adv.clone()
    broken[3], broken_adv[7] = hole, hole
    values = representation_values(broken, broken_adv, labels)
    assert values["alignment"].isnan().nonzero().flatten().tolist() == [3, 7]
    assert values["exclusion"].isnan().nonzero().flatten().tolist() == [3]
    assert values["separation"].isnan().nonzero().flatten().tolist() == [3, 7]
    table = cdist(features.numpy(), adv.numpy(), "cosine")
    pairs = labels.numpy()[:, None] != labels.numpy()[None, :]
    pairs[3, :], pairs[:, 7] = False, False
    np.testing.assert_allclose(values["exclusion"][0], table[0][pairs[0]].mean(), atol=1e-12)
    own = np.delete(np.diag(table), [3, 7])
    auc = mannwhitneyu(table[pairs], own).statistic / (len(own) * pairs.sum())
    assert values["separation"].nanmean().item() == pytest.approx(auc, abs=1e-6)


def test_no_samples_give_no_values() -> None:
    values = representation_values(
        torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    )
    assert {value.shape for value in values.values()} == {torch.Size([0])}


@pytest.mark.parametrize(
    "features, adv",
    [
        (torch.rand(3, 4), torch.rand(3, 5)),
        (torch.rand(3, 4, 1), torch.rand(3, 4, 1)),
        (torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.int64)),
    ],
)
def test_malformed_features_are_refused(features: Tensor, adv: Tensor) -> None:
    with pytest.raises(UsageError, match="floating-point features"):
        alignment(features, adv)


@pytest.mark.parametrize("labels", [torch.zeros(4, dtype=torch.int64), torch.zeros(3)])
def test_malformed_labels_are_refused(labels: Tensor) -> None:
    features = torch.rand(3, 4)
    for measure in (exclusion, separation):
        with pytest.raises(UsageError, match="one class number for each of the 3"):
            measure(features, features, labels)


def test_more_pairs_than_fit_into_a_block() -> None:
    features, adv, labels = drawn(2100, 4, 3)
    assert len(features) ** 2 > metrics._CHUNK_ELEMENTS
    auc = separation(features.float(), adv.float(), labels).mean().item()
    table = 1 - torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(adv).T
    own, _ = table.diag().sort()
    other = table[labels[:, None] != labels[None, :]]
    expected = torch.searchsorted(own, other).double().mean().item() / len(own)
    assert auc == pytest.approx(expected, abs=1e-5)
