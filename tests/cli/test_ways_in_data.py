"""Every way to bring data starts from files and ends with a row of the leaderboard.

The class of every image is its brightness, and the network reads it: wrong labels, a wrong range
or a wrong order would cost clean accuracy.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from brightness_network import level, trained
from fake_hub_data import ClassLabel, Rows, serve
from fake_hub_data import Image as ImageFeature
from invoke_cli import invoke
from PIL import Image
from torchvision import datasets as sets

from robench.datasets.imagenet import imagenet_classes, imagenet_subset

pytestmark = pytest.mark.usefixtures("unexamined")

N = 3
COUNT = 6
SUITE = '[[attacks]]\nname = "one-step"\nattack = "pgd"\nparams = { steps = 1 }\n'


def grey(label: int, classes: int, *size: int) -> np.ndarray:
    """uint8 of one brightness."""
    return np.full(size, round(255 * level(label, classes)), dtype=np.uint8)


def picture(path: Path, label: int, classes: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey(label, classes, side, side, 3)).save(path, quality=95)


def labels_of(classes: int) -> list[int]:
    return [round(k * (classes - 1) / (COUNT - 1)) for k in range(COUNT)]


# Each makes files below a folder and gives (--dataset, further options, classes, channels).

Made = tuple[str, list[str], int, int]


def cifar(patch: pytest.MonkeyPatch, root: Path, name: str, classes: int) -> Made:
    kind: Any = getattr(sets, name)
    folder = root / "data" / kind.base_folder
    folder.mkdir(parents=True)
    labels = labels_of(classes)
    pixels = np.stack([grey(label, classes, 3 * 32 * 32) for label in labels])
    key = "labels" if classes == 10 else "fine_labels"
    file = kind.test_list[0][0]
    names = {kind.meta["key"]: [f"class-{i}" for i in range(classes)]}
    for path, content in ((file, {"data": pixels, key: labels}), (kind.meta["filename"], names)):
        (folder / path).write_bytes(pickle.dumps(content))
    md5 = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    # The files are ours, so their hashes are too.
    patch.setattr(kind, "test_list", [[file, md5[file]]])
    patch.setattr(kind, "train_list", [])
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5[kind.meta["filename"]]})
    return name.lower(), ["--data", "data"], classes, 3


def svhn(patch: pytest.MonkeyPatch, root: Path) -> Made:
    (root / "data").mkdir()
    path = root / "data" / "test_32x32.mat"
    pixels = np.stack([grey(label, 10, 32, 32, 3) for label in labels_of(10)], axis=-1)
    # Its zeros are written as 10.
    scipy.io.savemat(path, {"X": pixels, "y": [[label or 10] for label in labels_of(10)]})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    patch.setattr(sets.SVHN, "split_list", {"test": ["", path.name, md5]})
    return "svhn", ["--data", "data"], 10, 3


def mnist(patch: pytest.MonkeyPatch, root: Path, name: str) -> Made:
    raw = root / "data" / name / "raw"
    raw.mkdir(parents=True)
    pixels = np.stack([grey(label, 10, 28, 28) for label in labels_of(10)])
    for part in ("train", "t10k"):
        for what, array in (
            ("images-idx3", pixels),
            ("labels-idx1", np.array(labels_of(10), dtype=np.uint8)),
        ):
            sizes = struct.pack(f">{array.ndim}I", *array.shape)
            content = struct.pack(">HBB", 0, 8, array.ndim) + sizes + array.tobytes()
            path = raw / f"{part}-{what}-ubyte"
            path.write_bytes(content)
            path.with_suffix(".gz").write_bytes(gzip.compress(content))
    chosen = "mnist" if name == "MNIST" else "fashion-mnist"
    return chosen, ["--data", "data"], 10, 1


def tiny_imagenet(patch: pytest.MonkeyPatch, root: Path) -> Made:
    home = root / "data" / "tiny-imagenet-200"
    rows = []
    for number, label in enumerate(labels_of(6)):
        picture(home / "val" / "images" / f"val_{number}.JPEG", label, 6, 64)
        rows.append(f"val_{number}.JPEG\tn{label}\t0\t0\t31\t63")
    (home / "val" / "val_annotations.txt").write_text("\n".join(rows))
    (home / "wnids.txt").write_text("\n".join(f"n{label}" for label in reversed(range(6))))
    return "tiny-imagenet", ["--data", "data"], 6, 3


def imagenet(patch: pytest.MonkeyPatch, root: Path) -> Made:
    listed = {}
    # The levels of these three are whole numbers of 255ths.
    for label in (0, 333, 999):
        wnid = imagenet_classes()[label]
        listed[next(file for file in imagenet_subset() if file.startswith(wnid))] = label
    for file, label in listed.items():
        picture(root / "data" / "imagenet" / "val" / file, label, 1000, 280)
    (root / "list.txt").write_text("\n".join(listed))
    return "imagenet", ["--data", "data", "--dataset-option", "samples=list.txt"], 1000, 3


def folder(patch: pytest.MonkeyPatch, root: Path, masks: str = "") -> Made:
    for number, label in enumerate(labels_of(6)):
        picture(root / "images" / f"c{label}" / f"{number}.png", label, 6)
    boxes = {f"c{label}/{number}": (0, 0, 6, 12) for number, label in enumerate(labels_of(6))}
    if masks == "png":
        for stem in boxes:
            mask = np.zeros((12, 12), dtype=np.uint8)
            mask[:, :6] = 255
            (root / "masks" / stem).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{stem}.png")
        return "images", ["--dataset-option", "masks=masks"], 6, 3
    if masks == "voc":
        for stem in boxes:
            path = root / "masks" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                "<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>6</xmax>"
                "<ymax>12</ymax></bndbox></object></annotation>"
            )
        return "images", ["--dataset-option", "masks=masks"], 6, 3
    if masks == "coco":
        images = [{"id": i, "file_name": f"{stem}.png"} for i, stem in enumerate(boxes)]
        annotations = [{"image_id": i, "bbox": [0, 0, 6, 12]} for i in range(len(boxes))]
        content = json.dumps({"images": images, "annotations": annotations})
        (root / "boxes.json").write_text(content)
        return "images", ["--dataset-option", "masks=boxes.json"], 6, 3
    return "images", [], 6, 3


def array_file(patch: pytest.MonkeyPatch, root: Path, suffix: str) -> Made:
    labels = np.array(labels_of(6))
    inputs = np.stack([grey(label, 6, 8, 8, 3) for label in labels])
    match suffix:
        case ".npz":
            np.savez(root / "a.npz", x_test=inputs, y_test=labels)
        case ".npy":
            np.save(root / "a.npy", inputs)
            np.save(root / "a_labels.npy", labels)
        case ".pt":
            torch.save(
                (torch.from_numpy(inputs).permute(0, 3, 1, 2) / 255, labels.tolist()), "a.pt"
            )
    return f"a{suffix}", [], 6, 3


def hub(patch: pytest.MonkeyPatch, root: Path) -> Made:
    for number, label in enumerate(labels_of(6)):
        picture(root / "hub" / f"{number}.png", label, 6)
    images = [
        lambda i=i: Image.open(root / "hub" / f"{i}.png").convert("RGB") for i in range(COUNT)
    ]
    features = {"image": ImageFeature(), "label": ClassLabel("abcdef")}
    rows = Rows({"image": images, "label": labels_of(6)}, features)
    serve(patch, {"someone/things": {"validation": rows}})
    return "hf:someone/things", ["--split", "validation"], 6, 3


WAYS: dict[str, Callable[[pytest.MonkeyPatch, Path], Made]] = {
    "cifar10": lambda patch, root: cifar(patch, root, "CIFAR10", 10),
    "cifar100": lambda patch, root: cifar(patch, root, "CIFAR100", 100),
    "svhn": svhn,
    "mnist": lambda patch, root: mnist(patch, root, "MNIST"),
    "fashion-mnist": lambda patch, root: mnist(patch, root, "FashionMNIST"),
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "folder": folder,
    "folder, png masks": lambda patch, root: folder(patch, root, "png"),
    "folder, VOC boxes": lambda patch, root: folder(patch, root, "voc"),
    "folder, COCO boxes": lambda patch, root: folder(patch, root, "coco"),
    ".npz": lambda patch, root: array_file(patch, root, ".npz"),
    ".npy": lambda patch, root: array_file(patch, root, ".npy"),
    ".pt": lambda patch, root: array_file(patch, root, ".pt"),
    "hub": hub,
}


SLOW = {"cifar100", "fashion-mnist", "folder, VOC boxes", "folder, COCO boxes", ".npy"}
"""As others are; what is read of their files is in tests/datasets."""


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] if way in SLOW else []) for way in WAYS]
)
def test_from_files_to_a_row(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.toml").write_text(SUITE)
    dataset, options, classes, channels = WAYS[way](monkeypatch, tmp_path)
    torch.save(trained(classes, channels).state_dict(), "mine.pt")
    done = invoke(
        *("run", "mine.pt", "--arch", "brightness_network:build", "--dataset", dataset, *options),
        *("--eps", "1/1000", "--suite", "one.toml", "--n", N, "--no-plots", "--json"),
        *("--device", "cpu", "--precision", "fp32"),
    )
    assert done.code == 0, done.err
    (row,) = done.json["leaderboard"]
    assert (row["model"], row["n"], row["clean_acc"]) == ("mine", N, 100.0)
    assert len(row["data_sha256"]) == 64
    assert Path("results/leaderboard.csv").is_file()
    # The network looks everywhere alike: the object's half has half of its attention.
    known = "masks" in way or "boxes" in way or way == "tiny-imagenet"
    coverage = row.get("attention_coverage_clean")
    assert (coverage is not None) == known
    if known:
        assert coverage == pytest.approx(0.5, abs=0.02)
