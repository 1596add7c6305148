"""Adversarial inputs of others, read and matched to the samples, or refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from robench.datasets import ArrayDataset
from robench.datasets.adversarial_files import AdversarialFile, MatchedInputs
from robench.errors import DataError

N, SHAPE = 5, (3, 2, 4)
LEVELS = (torch.arange(N * 24).reshape(N, *SHAPE) * 2).to(torch.uint8)
PIXELS = LEVELS.float() / 255
LABELS = torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture(scope="module")
def samples() -> ArrayDataset:
    """Five samples of three classes."""
    return ArrayDataset(
        torch.full((N, *SHAPE), 0.5), LABELS, class_names="a,b,c", sample_ids=list("pqrst")
    )


def match(source: Any, samples: ArrayDataset) -> MatchedInputs:
    return AdversarialFile.of(source).matched(samples, 8 / 255)


def write(path: Path, **arrays: Any) -> Path:
    """Arrays in the format that the file's name says."""
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})
    elif path.suffix == ".npy":
        np.save(path, np.asarray(arrays["adv_inputs"]))
    elif path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        torch.save(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".pt", ".pth"])
def test_every_format_gives_the_same_inputs(
    tmp_path: Path, samples: ArrayDataset, suffix: str
) -> None:
    found = match(write(tmp_path / f"theirs{suffix}", adv_inputs=PIXELS), samples)
    assert found.name == "theirs"
    assert torch.equal(found.inputs, PIXELS)
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    assert found.inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (LEVELS, "uint8 divided by 255, NCHW"),
        (LEVELS.movedim(1, -1), "uint8 divided by 255, NHWC"),
        (PIXELS.movedim(1, -1).numpy(), "float32 in [0, 1], NHWC"),
        (PIXELS.double(), "float64 in [0, 1], NCHW"),
        (PIXELS.numpy().astype(">f4"), "float32 in [0, 1], NCHW"),
    ],
)
def test_types_and_orders_of_axes_become_the_same_pixels(
    samples: ArrayDataset, given: Any, said: str
) -> None:
    found = match(given, samples)
    assert torch.equal(found.inputs, PIXELS)
    assert found.read_as == f"{said}, in the data set's order"
    assert found.name == "tensors"


def test_grey_inputs_may_lack_their_axis() -> None:
    grey = ArrayDataset(torch.zeros(2, 1, 3, 4), torch.tensor([0, 1]))
    found = match(torch.ones(2, 3, 4), grey)
    assert (found.inputs.shape, found.read_as.split(", ")[2]) == ((2, 1, 3, 4), "NHW")


def test_ids_say_whose_inputs_these_are(samples: ArrayDataset) -> None:
    for key, ids in (("ids", ["t", "p"]), ("sample_ids", np.array([b"t", b"p"]))):
        found = match({"x_adv": PIXELS[:2], key: ids, "y": torch.tensor([1, 0])}, samples)
        assert found.rows.tolist() == [4, 0]
        assert found.read_as == "array 'x_adv', float32 in [0, 1], NCHW, by their ids"


def test_adversarial_names_come_before_those_of_clean_inputs(samples: ArrayDataset) -> None:
    clean = torch.zeros_like(PIXELS)
    for key in ("adversarial", "adv_complete"):
        found = match({"images": clean, key: PIXELS, "labels": LABELS}, samples)
        assert torch.equal(found.inputs, PIXELS)
    assert torch.equal(match({"arr_0": PIXELS}, samples).inputs, PIXELS)
    assert torch.equal(match((PIXELS, LABELS), samples).inputs, PIXELS)


def test_nothing_is_clipped_or_left_out(samples: ArrayDataset) -> None:
    odd = PIXELS.clone()
    odd[0, 0, 0, 0], odd[1, 0, 0, 0], odd[2, 0, 0, 0] = 1.5, -0.01, torch.nan
    assert torch.equal(match(odd, samples).inputs.nan_to_num(7), odd.nan_to_num(7))


def test_the_hash_of_tensors_is_that_of_pixels_and_ids(samples: ArrayDataset) -> None:
    first = match(PIXELS, samples).sha256
    assert match(LEVELS.movedim(1, -1), samples).sha256 == first
    assert match({"inputs": PIXELS, "ids": list("pqrst")}, samples).sha256 == first
    assert match({"inputs": PIXELS, "ids": list("tsrqp")}, samples).sha256 != first
    assert match(PIXELS + 1e-6, samples).sha256 != first


REFUSED: dict[str, tuple[Any, str]] = {
    "count": (PIXELS[:4], r"4 inputs without ids for 5 samples of arrays \(test\)"),
    "none": (PIXELS[:0], "there are no inputs"),
    "shape": (torch.zeros(N, 3, 2, 5), r"have shape \(5, 3, 2, 5\), the samples \(3, 2, 4\)"),
    "flat": (PIXELS.flatten(1), r"have shape \(5, 24\)"),
    "one image": (PIXELS[0], r"have shape \(3, 2, 4\)"),
    "scalar": (torch.tensor(0.5), r"have shape \(\)"),
    "0 to 255": (PIXELS * 255, r"range over \[0, 238\], not \[0, 1\]\. Divide them by 255"),
    "normalised": ((PIXELS - 0.5) / 0.05, "not .0, 1.. Undo what they were normalised by"),
    "integers": (LEVELS.long(), "the inputs are int64. Give floats in .0, 1., or uint8"),
    "complex": (PIXELS.to(torch.complex64), "the inputs are complex64"),
    "texts": (np.array(["a"] * N), "is no array of numbers"),
    "doubled id": ({"adv": PIXELS, "ids": list("pqrsp")}, "the id 'p' is there 2 times"),
    "unknown ids": (
        {"adv": PIXELS, "ids": [0, 1, 2, 3, 4]},
        "5 of 5 ids are none of arrays .test., such as '0'. They are like 'p'",
    ),
    "too few ids": ({"adv": PIXELS, "ids": list("pq")}, "5 inputs but 2 ids"),
    "order": (
        {"adv": PIXELS, "labels": LABELS.flip(0)},
        "4 of 5 labels are not the samples', the first of 'p': 1 instead of 0",
    ),
    "labels by id": (
        {"adv": PIXELS[:2], "ids": ["q", "p"], "y": [0, 1]},
        "2 of 2 labels are not the samples', the first of 'q': 0 instead of 1",
    ),
    "too few labels": ({"adv": PIXELS, "y": [0, 1]}, "5 inputs but labels of shape"),
    "names": ({"one": PIXELS, "two": PIXELS}, r"no adversarial inputs among .*\['one', 'two'\]"),
    "empty": ({}, "no adversarial inputs among the arrays"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_matched_for_sure_is_refused(
    samples: ArrayDataset, given: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        match(given, samples)


OWN = torch.linspace(0, 1, 7).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
"""Seven grey samples, each a sixth lighter than the one before"""


@pytest.mark.parametrize("order", [[6, 5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 6, 0]])
def test_inputs_near_other_samples_than_their_own_are_in_another_order(order: list[int]) -> None:
    dataset = ArrayDataset(OWN, torch.tensor([0, 1] * 3 + [0]), num_classes=2, sample_ids="pqrstuv")
    there = (OWN + 0.02)[order]
    message = rf"inputs .* are near other samples .* 'p' near '{'pqrstuv'[order[0]]}'.* order"
    for given in there, (there * 255).round().clamp(0, 255).to(torch.uint8):
        with pytest.raises(DataError, match=message):
            match(given, dataset)
    ids = ["pqrstuv"[row] for row in order]
    assert match({"x_adv": there, "ids": ids}, dataset).rows.tolist() == order


def test_inputs_near_no_sample_or_mostly_near_their_own_are_matched() -> None:
    dataset = ArrayDataset(OWN, torch.tensor([0, 1] * 3 + [0]), num_classes=2)
    assert len(match((OWN + 0.07).clamp(0, 1), dataset).rows) == 7
    few = OWN[[1, 2, 0, 3, 4, 5, 6]]
    assert len(match(few, dataset).rows) == 7


def test_a_few_inputs_outside_the_box_are_no_other_range(samples: ArrayDataset) -> None:
    """Those do not count, each by itself; and attacks that do not clip leave the box by ε at most."""
    two = PIXELS.clone()
    two[:2] -= 2
    match(two, samples)
    match(PIXELS - 7 / 255, samples)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"no format at all" * 20])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as caught:
        AdversarialFile.of(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        AdversarialFile.of(tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match="does not exist"):
        AdversarialFile.of(tmp_path)


def test_arrays_of_numpys_in_a_file_of_torchs_are_arrays(
    tmp_path: Path, samples: ArrayDataset
) -> None:
    path = tmp_path / "theirs.pt"
    torch.save({"x_adv": PIXELS.numpy(), "y": LABELS.numpy(), "ids": list("pqrst")}, path)
    found = match(path, samples)
    assert torch.equal(found.inputs, PIXELS)
    assert found.read_as.startswith("array 'x_adv', float32")


class _Executes:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["one.pt", "array.pt", "array.npy", "array.npz"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, name: str) -> None:
    path, mark = tmp_path / name, tmp_path / "executed"
    array = np.array([_Executes(mark)], dtype=object)
    if path.suffix == ".pt":
        torch.save({"adv_inputs": _Executes(mark) if path.stem == "one" else array}, path)
    elif path.suffix == ".npz":
        np.savez(path, adv_inputs=array)
    else:
        np.save(path, array)
    with pytest.raises(DataError, match="cannot be read without executing code"):
        AdversarialFile.of(path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps(_Executes(mark)))
    with pytest.raises(DataError, match="cannot be read"):
        AdversarialFile.of(path)
    assert not mark.exists()


def test_tensors_of_a_graph_are_taken(samples: ArrayDataset) -> None:
    given: Tensor = PIXELS.clone().requires_grad_()
    assert not match(given * 1, samples).inputs.requires_grad
