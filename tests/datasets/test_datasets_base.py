"""What every data set promises, and what is refused."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.datasets import ArrayDataset, Subset, hold_out
from robench.datasets.base import stratified_choice
from robench.errors import DataError, UsageError


def made(n: int = 40, classes: int = 4, **changes: object) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    arguments: dict[str, object] = {
        "inputs": torch.rand(n, 1, 3, 5, generator=generator),
        "labels": torch.arange(n) % classes,
        "num_classes": classes,
        **changes,
    }
    return ArrayDataset(**arguments)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_smaller_subsets_lie_inside_larger_ones(a: int, b: int) -> None:
    dataset = made()
    small, large = sorted((a, b))
    inner, outer = dataset.subset(small), dataset.subset(large)
    assert set(inner.sample_ids) <= set(outer.sample_ids)
    assert list(outer.subset(small).sample_ids) == list(inner.sample_ids)
    assert list(inner.sample_ids) == sorted(inner.sample_ids), "canonical order is kept"


def test_a_subset_reads_its_parents_samples() -> None:
    dataset = made()
    subset = dataset.subset(7)
    position = {name: i for i, name in enumerate(dataset.sample_ids)}
    chosen = [position[name] for name in subset.sample_ids]
    assert torch.equal(subset.batch(range(7)), dataset.batch(chosen))
    assert torch.equal(subset.labels, dataset.labels[chosen])
    assert subset.num_classes == dataset.num_classes
    assert subset.batch(torch.tensor([2, 0])).shape == (2, 1, 3, 5)


def test_the_subset_is_the_one_with_the_smallest_hashes() -> None:
    dataset = made(10, 2)
    by_hash = sorted(dataset.sample_ids, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    assert set(dataset.subset(3).sample_ids) == set(by_hash[:3])


@pytest.mark.parametrize("n", [0, -1, 41])
def test_an_impossible_n_says_how_many_there_are(n: int) -> None:
    with pytest.raises(UsageError, match="has 40 samples"):
        made().subset(n)


def test_the_fingerprint_depends_on_content_and_not_on_order() -> None:
    dataset = made()
    same = dataset.fingerprint
    assert made().fingerprint == same
    reversed_ = Subset(dataset, list(range(39, -1, -1)))
    assert reversed_.fingerprint == same
    pixels = dataset.batch(range(40)).clone()
    pixels[3, 0, 0, 0] = 1 - pixels[3, 0, 0, 0]
    labels = dataset.labels.clone()
    labels[0] = 1
    others = [
        made(inputs=pixels),
        made(labels=labels),
        made(sample_ids=[f"other/{i:06d}" for i in range(40)]),
        made(num_classes=5),
        dataset.subset(39),
    ]
    assert len({same, *(other.fingerprint for other in others)}) == 6


def test_spec_says_which_samples() -> None:
    spec = made().subset(5).spec()
    assert (spec.name, spec.split, spec.n, spec.num_classes) == ("arrays", "test", 5, 4)
    assert spec.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": torch.zeros(0, 1, 3, 5), "labels": torch.zeros(0).long()}, "empty"),
        ({"labels": torch.full((40,), 4)}, r"label 4 of sample 'arrays/000000' is outside 0..3"),
        ({"labels": torch.full((40,), -1)}, "label -1"),
        ({"labels": torch.zeros(39).long()}, "40 samples but labels of shape"),
        ({"labels": torch.zeros(40)}, "labels are torch.float32"),
        ({"labels": torch.zeros(40).long(), "num_classes": 1}, "two or more"),
        ({"sample_ids": ["a"] * 40}, "ids repeat"),
        ({"sample_ids": ["a"]}, "40 inputs but 1 sample ids"),
        ({"inputs": torch.rand(40, 3, 5)}, r"\(N, C, H, W\)"),
        ({"inputs": torch.rand(40, 1, 3, 5) * 255}, r"Divide by 255"),
        ({"inputs": torch.rand(40, 1, 3, 5) * 2 - 1.0}, r"not \[0, 1\]"),
        ({"inputs": torch.full((40, 1, 3, 5), float("nan"))}, "nan"),
        ({"inputs": torch.zeros(40, 1, 3, 5).long()}, "inputs are torch.int64"),
        ({"masks": torch.zeros(40, 5, 3)}, "masks have shape"),
        ({"class_names": ["a", "b"]}, "2 class names for 4 classes"),
    ],
)
def test_malformed_data_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(**changes)


def test_an_index_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"outside 0\.\.39"):
        made().batch([40])
    with pytest.raises(UsageError, match="index -1"):
        made().masks([-1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_a_stratified_choice_shares_in_proportion(labels: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, len(labels)))
    ids = [f"s{i}" for i in range(len(labels))]
    chosen = stratified_choice(ids, labels, n)
    assert len(chosen) == len(set(chosen)) == n
    assert chosen == sorted(chosen)
    for label in set(labels):
        exact = n * labels.count(label) / len(labels)
        got = sum(labels[i] == label for i in chosen)
        assert abs(got - exact) < 1, "largest remainder stays within one of the exact share"


def test_hold_out_parts_without_rest() -> None:
    dataset = made()
    rest, held = hold_out(dataset, 8)
    assert set(rest.sample_ids).isdisjoint(held.sample_ids)
    assert set(rest.sample_ids) | set(held.sample_ids) == set(dataset.sample_ids)
    assert torch.bincount(held.labels).tolist() == [2, 2, 2, 2]
    assert held.split == "validation"
    for n in (0, 40):
        with pytest.raises(UsageError, match="cannot hold out"):
            hold_out(dataset, n)
