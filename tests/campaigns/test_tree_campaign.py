"""Any tree of images: it is read as a description says, or one line says what is wrong.

What is read is described by the plan itself, by none of the product's code.
"""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import campaign
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from robench.datasets import Dataset, load_dataset
from robench.errors import RobenchError

Pixels = np.ndarray[Any, Any]


def _corners(seed: int, channels: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (2, 2, channels)).astype(np.uint8)


def _rgb(path: Path, seed: int) -> Pixels:
    stored = _corners(seed, 3)
    Image.fromarray(stored).save(path)
    return stored / 255


def _grey(path: Path, seed: int) -> Pixels:
    stored = _corners(seed, 1)[:, :, 0]
    Image.fromarray(stored).save(path)
    return np.stack([stored] * 3, -1) / 255


def _deep(path: Path, seed: int) -> Pixels:
    stored = _corners(seed, 1)[:, :, 0].astype(np.uint16) * 251 + 7
    Image.fromarray(stored).save(path)
    return np.stack([stored] * 3, -1) / 65535


def _alpha(path: Path, seed: int) -> Pixels:
    stored = _corners(seed, 4)
    Image.fromarray(stored).save(path)
    return stored[:, :, :3] / 255


def _palette(path: Path, seed: int) -> Pixels:
    colours = _corners(seed, 3)
    indices = Image.fromarray(np.array([[3, 1], [0, 2]], np.uint8))
    indices.putpalette(colours.reshape(-1).tolist())
    indices.save(path)
    return colours.reshape(4, 3)[[[3, 1], [0, 2]]] / 255


def _bits(path: Path, seed: int) -> Pixels:
    stored = _corners(seed, 1)[:, :, 0] > 127
    Image.fromarray(stored).save(path)
    return np.stack([stored] * 3, -1).astype(float)


def _turned(path: Path, seed: int) -> Pixels:
    stored = _corners(seed, 3)
    exif = Image.Exif()
    exif[274] = 6  # to be shown a quarter to the right
    Image.fromarray(stored).save(path, exif=exif)
    return np.rot90(stored, -1) / 255


MODES: dict[str, tuple[str, Callable[[Path, int], Pixels]]] = {
    "rgb": (".png", _rgb),
    "upper case": (".PNG", _rgb),
    "bmp": (".bmp", _rgb),
    "grey": (".png", _grey),
    "16 bits": (".png", _deep),
    "tiff": (".tiff", _deep),
    "alpha": (".png", _alpha),
    "palette": (".png", _palette),
    "one bit": (".png", _bits),
    "turned": (".png", _turned),
}

IGNORED = [
    *(".hidden.png", ".git/x.png", "sub/.cache/y.png", "__MACOSX/z.png", "@eaDir/a/t.jpg"),
    *("notes.txt", "sub/Thumbs.db", "lost+found/q.png"),
]

FAULTS = ["damaged", "dangling", "loop", "empty class"]


@dataclass(frozen=True)
class Planned:
    """An image: the class, the folders below it, its mode, and what of it is a link."""

    label: int
    below: tuple[str, ...]
    mode: str
    link: str
    seed: int


@dataclass(frozen=True)
class Layout:
    """Where the class folders lie.

    Args:
        split: the split's folder; None: they lie in the root.
        within: what lies between the two: nothing, a folder of the same name, or another.
        other: a further split, in the same way.
        holds: what that holds: the classes, all but one, one more, in other letters, with the split in
            their names, or images alone.
        beside: a further folder, empty or of images; what it is called.
    """

    split: str | None
    within: str = ""
    other: str | None = None
    holds: str = "all"
    beside: str | None = None

    def home(self, split: str | None) -> str:
        return "/".join(filter(None, (split, split if self.within == "same" else self.within)))


@dataclass(frozen=True)
class Plan:
    """A tree: classes, images (one in each class's own folder at least), and what disturbs."""

    classes: list[str]
    layout: Layout
    images: list[Planned]
    ignored: list[tuple[int, str]]
    fault: str | None


names_of_classes = st.one_of(
    st.lists(st.sampled_from(["0", "2", "9", "10", "011", "100"]), min_size=2, unique_by=int),
    st.lists(
        st.sampled_from(["cat", "Dog", "café", "10", "x y", "a,b", "train", "-1"]),
        min_size=2,
        unique=True,
    ).filter(lambda names: set(names) != {"train"}),
)


CALLED = [
    *(("test", "train"), ("val", "train"), ("test_set", "training_set"), ("testing", "training")),
    *(("Test", "Train"), ("seg_test", "seg_train"), ("TestSet", "valid-images"), ("tst1", "dev")),
]
"""Pairs that say that they are splits"""

FOLDS = [("fold1", "fold2"), ("clean", "blurred"), ("évaluations", "x y z")]

WITHIN = ["", "same", "images", "Data", "anything"]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    kind = draw(st.sampled_from(["root", "root", "one", "one", "two", "two", "two"]))
    if kind == "root":
        return Layout(None)
    split, other = draw(st.sampled_from(CALLED + FOLDS if kind == "two" else CALLED))
    within = draw(st.sampled_from(WITHIN))
    if kind == "one":
        return Layout(split, within)
    holds = draw(st.sampled_from(["all", "all", "fewer", "more", "letters", "said", "flat"]))
    beside = draw(st.sampled_from([None, None, None, "bus", "docs/"]))
    return Layout(split, within, other, holds, beside)


def held_by_other(plan: Plan) -> list[str]:
    """The class folders of the further split."""
    classes = plan.classes
    return {
        "all": classes,
        "fewer": classes[1:],
        "more": [*classes, "zebra"],
        "letters": [name.swapcase() for name in classes],
        "said": [f"{name}_{plan.layout.other}" for name in classes],
        "flat": [],
    }[plan.layout.holds]


def refusal(plan: Plan) -> str | None:
    """What is said of a layout that is refused, with the split's own folder as its name."""
    layout = plan.layout
    if layout.other is None:
        return None
    called = (layout.split, layout.other) in CALLED
    classes, other = plan.classes, held_by_other(plan)
    beside = layout.beside == "bus"
    # A single folder of images is itself a class, if its name is no word for images.
    flat_class = layout.holds == "flat" and layout.within == "anything"
    lone_class = len(other) == 1 and layout.within == "anything"
    if layout.holds == "flat":
        apart = not called
    else:
        letters = {name.casefold() for name in classes}
        apart = not called and (lone_class or letters.isdisjoint(n.casefold() for n in other))
    if beside or apart:
        return "could be a split, and could be a class"
    if flat_class or lone_class or not {*other} <= {*classes}:
        return "has no class folder"
    return None


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    classes = draw(names_of_classes)
    label = st.integers(0, len(classes) - 1)
    mode, seed = st.sampled_from(sorted(MODES)), st.integers(0, 999)
    own = [
        Planned(label, (), draw(mode), draw(st.sampled_from(["", "file"])), draw(seed))
        for label in range(len(classes))
    ]
    below = st.lists(st.sampled_from(["a", "b", "ü"]), max_size=2).map(tuple)
    link = st.sampled_from(["", "", "file", "folder"])
    further = draw(st.lists(st.builds(Planned, label, below, mode, link, seed), max_size=6))
    layout = draw(layouts())
    return Plan(
        classes,
        layout,
        own + further,
        draw(st.lists(st.tuples(label, st.sampled_from(IGNORED)), max_size=4)),
        draw(st.sampled_from([None, None, None, *([] if layout.other else FAULTS)])),
    )


def build(plan: Plan, root: Path, far: Path) -> dict[str, tuple[str, Pixels]]:
    """Write the tree; id → class and pixels (H, W, 3) of what is to be read."""
    home = root / unicodedata.normalize("NFD", plan.layout.home(plan.layout.split))
    expected: dict[str, tuple[str, Pixels]] = {}
    for number, planned in enumerate(plan.images):
        name = plan.classes[planned.label]
        suffix, write = MODES[planned.mode]
        # Folders are stored with their Unicode decomposed, as macOS does.
        parts = [unicodedata.normalize("NFD", part) for part in (name, *planned.below)]
        folder = home.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        file = f"{number}{suffix}"
        if planned.link == "folder":
            (folder / f"l{number}").symlink_to(far / f"{number}", target_is_directory=True)
            file = f"l{number}/{file}"
        (far / f"{number}").mkdir(parents=True)
        place = far / f"{number}" / f"{number}{suffix}" if planned.link else folder / file
        pixels = write(place, planned.seed)
        if planned.link == "file":
            (folder / file).symlink_to(place)
        key = "/".join(
            filter(None, [plan.layout.home(plan.layout.split), name, *planned.below, file])
        )
        expected[unicodedata.normalize("NFC", key)] = (name, pixels)
    for label, ignored in plan.ignored:
        path = home / unicodedata.normalize("NFD", plan.classes[label]) / ignored
        image(path)
    build_beside(plan, root)
    disturb(plan.fault, home, home / unicodedata.normalize("NFD", plan.classes[0]))
    return expected


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path, "PNG")


def build_beside(plan: Plan, root: Path) -> None:
    layout = plan.layout
    if layout.other is not None:
        for name in held_by_other(plan) or [""]:
            image(root / layout.home(layout.other) / name / "other.png")
    if layout.beside == "docs/":
        (root / "docs").mkdir()
    elif layout.beside is not None:
        image(root / layout.beside / "0.png")


def disturb(fault: str | None, home: Path, folder: Path) -> None:
    if fault == "damaged":
        (folder / "fault.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    elif fault == "dangling":
        (folder / "fault.jpg").symlink_to("nowhere.jpg")
    elif fault == "loop":
        (folder / "fault").symlink_to("..", target_is_directory=True)
    elif fault == "empty class":
        (home / "fault").mkdir()


def described_order(names: list[str]) -> list[str]:
    whole = all(name.isdigit() for name in names)
    return sorted(names, key=(lambda n: (int(n), n)) if whole else str)


def read_all(folder: Path, split: str) -> None:
    dataset = load_dataset(folder, split=split)
    dataset.batch(range(len(dataset)))


def check_read(
    dataset: Dataset, classes: list[str], expected: dict[str, tuple[str, Pixels]]
) -> None:
    assert list(dataset.sample_ids) == sorted(expected)
    assert list(dataset.class_names) == described_order(classes)
    pixels = dataset.batch(range(len(dataset))).permute(0, 2, 3, 1).numpy()
    for row, key in enumerate(dataset.sample_ids):
        name, wanted = expected[key]
        assert dataset.class_names[int(dataset.labels[row])] == name
        assert np.abs(pixels[row] - wanted).max() < 1e-6, key


def check(plan: Plan) -> None:
    layout, said = plan.layout, refusal(plan)
    event(f"fault: {plan.fault}, two splits: {layout.other is not None}, refused: {said}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        expected = build(plan, root, Path(folder) / "far")
        split = layout.split or "test"
        if plan.fault is not None:
            with pytest.raises(RobenchError, match="fault"):
                read_all(root, split)
            return
        if said is None:
            check_read(load_dataset(root, split=split), plan.classes, expected)
            return
        with pytest.raises(RobenchError, match=said):
            load_dataset(root, split=split)
        # Whoever names the split's own folder has no other splits.
        home = layout.home(split) + "/"
        own = {key.removeprefix(home): value for key, value in expected.items()}
        place = root / unicodedata.normalize("NFD", home)
        check_read(load_dataset(place), plan.classes, own)


CAREFUL: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "print_blob": True,
}


@settings(max_examples=25, **CAREFUL)
@given(plans())
def test_a_generated_tree_is_read_as_it_was_planned(plan: Plan) -> None:
    check(plan)


@campaign(plan=plans())
def test_ten_thousand_generated_trees(plan: Plan) -> None:
    check(plan)
