"""Data sets of the Hugging Face Hub, through a fake of the package's one call."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub_data import ClassLabel, Image, Rows, Value, serve
from PIL import Image as Pictures

from robench.datasets import load_dataset, load_training_splits
from robench.errors import DataError, MissingDependencyError, UnknownNameError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3)).astype(np.uint8)
LABELS = [2, 0, 1, 1, 0, 2]


def pictures(pixels: np.ndarray) -> list[Any]:
    return [lambda row=row: Pictures.fromarray(row) for row in pixels]


def rows(**changes: Any) -> Rows:
    columns = {"id": list("abcdef"), "img": pictures(PIXELS), "label": LABELS}
    features: dict[str, Any] = {"id": Value(), "img": Image(), "label": ClassLabel("xyz")}
    for name, (values, kind) in changes.items():
        columns[name], features[name] = values, kind
    return Rows(columns, features)


def load(monkeypatch: pytest.MonkeyPatch, found: Rows, **options: Any) -> Any:
    serve(monkeypatch, {"someone/things": {"test": found}})
    return load_dataset("hf:someone/things", **options)


def test_columns_are_found_and_images_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows()
    dataset = load(monkeypatch, found)
    assert found.decoded == [("img", 0)], "labels are read without decoding an image"
    assert dataset.name == "someone_things"
    assert dataset.sample_ids[:2] == ["someone_things/test/000000", "someone_things/test/000001"]
    assert dataset.labels.tolist() == LABELS
    assert dataset.class_names == ("x", "y", "z")
    assert dataset.input_shape == (3, 8, 10)
    expected = torch.from_numpy(PIXELS[[4, 1]]).permute(0, 3, 1, 2) / 255
    assert torch.equal(dataset.batch([4, 1]), expected)
    assert found.decoded[1:] == [("img", 4), ("img", 1)]
    assert dataset.preprocessing is None
    assert dataset.fingerprint == load(monkeypatch, rows()).fingerprint


def test_what_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = serve(monkeypatch, {"mnist": {"test": rows(), "train": rows()}})
    load_dataset("hf:mnist@abc123", root=tmp_path, config="plain")
    assert calls == [
        {
            "path": "mnist",
            "name": "plain",
            "split": "test",
            "revision": "abc123",
            "cache_dir": str(tmp_path),
        }
    ]
    with pytest.raises(UnknownNameError, match=r'Unknown split "validation"\. Use one of'):
        load_dataset("hf:mnist", split="validation")
    assert load_dataset("hf:mnist", split="train").sample_ids[0] == "mnist/train/000000"


def test_training_data_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {"mnist": {"test": rows(), "train": rows()}})
    train, validation = load_training_splits("hf:mnist")
    assert (len(train), len(validation)) == (5, 1)


def test_columns_by_name_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(depth=(pictures(255 - PIXELS), Image()), coarse=([0, 1] * 3, ClassLabel("ab")))
    found.features["label"] = Value()
    two = rows(
        depth=(pictures(PIXELS), Image()),
        img=(["?"] * 6, Value()),
        alpha=(pictures(PIXELS), Image()),
    )
    with pytest.raises(UsageError, match=r"several image columns.*image=NAME: depth, alpha"):
        load(monkeypatch, two)
    dataset = load(monkeypatch, found, image="depth", label="coarse", size=4, grey=True)
    assert dataset.input_shape == (1, 4, 4)
    assert dataset.class_names == ("a", "b")
    assert dataset.preprocessing is not None
    assert dataset.preprocessing.size == (4, 4)
    assert {column for column, _ in found.decoded} == {"depth"}
    with pytest.raises(UsageError, match="There are: id, img, label"):
        load(monkeypatch, rows(), image="picture")


@pytest.mark.parametrize(
    "labels, kind, options, names",
    [
        (LABELS, Value(), {}, ("0", "1", "2")),
        (LABELS, Value(), {"num_classes": 5}, tuple("01234")),
        (["b", "a", "c", "b", "a", "a"], Value(), {}, ("a", "b", "c")),
    ],
)
def test_labels_without_names(
    monkeypatch: pytest.MonkeyPatch, labels: Any, kind: Any, options: Any, names: tuple[str, ...]
) -> None:
    dataset = load(monkeypatch, rows(label=(labels, kind)), **options)
    assert dataset.class_names == names
    assert [dataset.class_names[label] for label in dataset.labels] == list(map(str, labels))


@pytest.mark.parametrize(
    "kind, layout",
    [
        ("tensor", "CHW"),
        *product(["list of floats", "list of integers", "array"], ["CHW", "HWC"]),
    ],
)
def test_arrays_are_images_too(monkeypatch: pytest.MonkeyPatch, kind: str, layout: str) -> None:
    items: list[Any] = []
    for pixels in PIXELS.transpose(0, 3, 1, 2) if layout == "CHW" else PIXELS:
        whole = kind in ("list of integers", "array")
        values = pixels if whole else (pixels / 255).astype(np.float32)
        items.append(torch.from_numpy(values) if kind == "tensor" else values.tolist())
        if kind == "array":
            items[-1] = values
    dataset = load(monkeypatch, rows(img=(items, Value())), image="img")
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(dataset.batch(range(6)), expected)
    wide = [(300 * pixels.astype(int)).tolist() for pixels in PIXELS]
    with pytest.raises(DataError, match=r"inputs range over .*, not \[0, 1\]"):
        load(monkeypatch, rows(img=(wide, Value())), image="img")


def broken() -> Pictures.Image:
    raise OSError("image file is truncated\n(3 bytes)")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"label": ([-1] * 6, ClassLabel("xyz"))}, "the labels are not known.*--split"),
        ({"label": ([None] * 6, ClassLabel("xyz"))}, "the labels are not known"),
        ({"label": ([0.5] * 6, Value())}, "labels are float64, no class numbers"),
        ({"label": ([0, 1, 2, 3, 0, 0], ClassLabel("xyz"))}, "label 3 of sample"),
        ({"img": ([broken] * 6, Image())}, "row 0: cannot be read: image file is truncated"),
        ({"img": (["text"] * 6, Image())}, "row 0: str is no image"),
    ],
)
def test_data_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, changes: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words) as raised:
        load(monkeypatch, rows(**changes))
    assert "\n" not in str(raised.value)


def test_images_of_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(PIXELS)
    images[5] = lambda: Pictures.fromarray(PIXELS[5, :7])
    dataset = load(monkeypatch, rows(img=(images, Image())))
    with pytest.raises(DataError, match=r"row 5: the image has shape \(3, 7, 10\).*size="):
        dataset.batch([0, 5])


def test_addresses_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {})
    with pytest.raises(DataError, match="Couldn't reach 'a/b' on the Hub") as raised:
        load_dataset("hf:a/b")
    assert "\n" not in str(raised.value)
    for address in ("hf:", "hf:/etc/passwd", "hf:../x", "hf:a/b/c", "hf:a b"):
        with pytest.raises(UsageError, match="is not a repository of the Hub"):
            load_dataset(address)
    with pytest.raises(UsageError, match="has no option 'colour'"):
        load_dataset("hf:a/b", colour=1)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install robench\[hf-datasets\]"):
        load_dataset("hf:a/b")


def test_a_working_folder_does_not_answer_for_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = serve(monkeypatch, {"someone/things": {"test": rows()}, "mnist": {"test": rows()}})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone/things").mkdir(parents=True)
    (tmp_path / "mnist").write_text("")
    for address in ("someone/things", "someone/things@v1", "mnist"):
        with pytest.raises(DataError, match=rf"hf:{address}: the working folder holds.*folder:"):
            load_dataset(f"hf:{address}")
    assert not calls, "nothing was read"
    monkeypatch.chdir("/")
    assert len(load_dataset("hf:someone/things")) == 6


COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    "address, files, words",
    [
        (
            "imagefolder",
            ["/home/me/cats/0.png"],
            "no data set of the Hub: .*cats/0.png.*without hf:",
        ),
        (f"a/b@{COMMIT}", [f"hf://datasets/a/b@{'9' * 40}/x.parquet"], "another commit: hf://"),
        (f"a/b@{COMMIT}", [f"hf://datasets/a/b@{COMMIT}/x.parquet"], None),
        (f"a/b@{COMMIT}", [], None),
        ("a/b@main", [f"hf://datasets/a/b@{COMMIT}/x.parquet"], None),
        ("a/b", [f"https://huggingface.co/datasets/a/b/resolve/{COMMIT}/x.zip"], None),
    ],
)
def test_what_the_package_has_read_is_the_hubs_and_of_that_commit(
    monkeypatch: pytest.MonkeyPatch, address: str, files: list[str], words: str | None
) -> None:
    found = rows()
    found.info = SimpleNamespace(download_checksums=dict.fromkeys(files))  # type: ignore[attr-defined]
    serve(monkeypatch, {address.partition("@")[0]: {"test": found}})
    if words is None:
        assert len(load_dataset(f"hf:{address}")) == 6
    else:
        with pytest.raises(DataError, match=words):
            load_dataset(f"hf:{address}")
