"""Corrupted images that somebody published: what is read, under which name, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from PIL import Image
from torch import Tensor

from robench.corruptions import corrupt
from robench.datasets import load_dataset
from robench.errors import RobenchError, UsageError
from robench.preparation import prepare
from robench.records import AttackSpec, Suite
from robench.records.corruptions import BENCHMARK, CORRECT, SEVERITIES, trial_name
from robench.request import Request
from robench.seeding import sample_keys
from robench.threat_models import ThreatModel

N, ONLY = 6, "fog,contrast"
NAMES = ONLY.split(",")


def as_levels(inputs: Tensor) -> Any:
    return (inputs * 255).round().byte().numpy()


class Arrays:
    """A clean set, and a folder in the form of CIFAR-10-C of what robench itself makes of it."""

    def __init__(self, folder: Path) -> None:
        inputs = torch.from_numpy(as_levels(images(N, seed=1))) / 255
        labels = predictions(ExactNetwork(), inputs)
        labels[::3] = (labels[::3] + 1) % 6
        self.clean = folder / "small.npz"
        np.savez(self.clean, inputs=as_levels(inputs), labels=labels.numpy())
        self.data = load_dataset(self.clean, num_classes=6)
        keys = sample_keys(0, self.data.sample_ids)
        self.corrupted = folder / "small-c"
        self.corrupted.mkdir()
        for name in NAMES:
            made = [as_levels(corrupt(inputs, keys, name, s))[:, 0, :, :, None] for s in SEVERITIES]
            np.save(self.corrupted / f"{name}.npy", np.concatenate(made))
        np.save(self.corrupted / "labels.npy", np.tile(labels.numpy(), len(SEVERITIES)))


@pytest.fixture
def arrays(tmp_path: Path) -> Arrays:
    return Arrays(tmp_path)


def suite(**params: Any) -> Suite:
    spec = AttackSpec(
        name="corruptions",
        attack="corruptions",
        norms=("corruptions",),
        params={"only": ONLY, **params},
    )
    return Suite(name="some", attacks=(spec,))


def request(arrays: Arrays, **given: Any) -> Request:
    return Request(
        models=[ExactNetwork()],
        dataset=str(arrays.clean),
        num_classes=6,
        input={"channels": 1},
        **{
            "suite": suite(),
            "dataset_options": {"num_classes": 6, "corrupted": str(arrays.corrupted)},
            "workers": 1,
        }
        | given,
    )


def columns(stored: Any) -> Any:
    table = stored.table.set_index("sample_id").sort_index()
    return table[[c for c in table if c.startswith(CORRECT)] + ["outcome", "adv_margin"]]


def test_what_was_generated_and_published_gives_what_generating_gives(
    arrays: Arrays, unexamined: None
) -> None:
    (published,) = prepare(request(arrays)).run()
    (made,) = prepare(request(arrays, dataset_options={"num_classes": 6})).run()
    assert columns(published).equals(columns(made))
    assert str(made.record.threat_model) == "corruptions-generated"
    name = str(published.record.threat_model)
    assert name.startswith("corruptions-small-c-")
    assert ThreatModel.parse(name) == published.record.threat_model
    # Four of six samples are read as of six, under a name of their own.
    (some,) = prepare(request(arrays, n=4)).run()
    assert columns(some).equals(columns(made).loc[columns(some).index])
    assert str(some.record.threat_model) != name


def test_a_name_is_that_of_the_images(arrays: Arrays) -> None:
    data = load_dataset(arrays.clean, num_classes=6, corrupted=arrays.corrupted)
    trials = [trial_name(name, s) for name in NAMES for s in SEVERITIES]
    assert data.published is not None
    name = data.published.identity(trials)
    fog = np.load(arrays.corrupted / "fog.npy")
    np.save(arrays.corrupted / "fog.npy", fog.astype(fog.dtype, order="F"))
    assert data.published.identity(trials) == name
    assert data.published.at([4, 2]).identity(trials) == data.published.at([2, 4]).identity(trials)
    fog[-1] ^= 1
    np.save(arrays.corrupted / "fog.npy", fog)
    assert data.published.identity(trials) != name
    assert data.published.identity(["contrast_1"]) == data.published.identity(
        ["contrast_1", "snow_1"]
    )


def in_folders(arrays: Arrays, place: str) -> tuple[Path, Path]:
    """The same as image files: (clean, corrupted)."""
    clean, corrupted = arrays.clean.parent / "clean", arrays.corrupted
    source = np.load(arrays.clean)
    for i, (image, label) in enumerate(zip(source["inputs"], source["labels"], strict=True)):
        path = f"{label}/{i}.png"
        shown = [(clean / path, image[0])]
        for name in NAMES:
            content = np.load(corrupted / f"{name}.npy")
            for s in SEVERITIES:
                place_of = corrupted / "files" / place / name / str(s) / path
                shown.append((place_of, content[(s - 1) * N + i, :, :, 0]))
        for file, levels in shown:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels).save(file)
    return clean, corrupted / "files"


@pytest.mark.parametrize("place", [".", "weather"])
def test_folders_are_read_by_the_paths_of_the_clean_images(arrays: Arrays, place: str) -> None:
    clean, files = in_folders(arrays, place)
    of_arrays = load_dataset(arrays.clean, num_classes=6, corrupted=arrays.corrupted).published
    data = load_dataset(clean, grey=True, num_classes=6, corrupted=files)
    assert of_arrays is not None
    assert data.published is not None
    order = [int(Path(name).stem) for name in data.sample_ids]
    for name in NAMES:
        for severity in SEVERITIES:
            trial = trial_name(name, severity)
            ours, theirs = data.published.read(range(N), trial), of_arrays.read(order, trial)
            assert ours is not None
            assert theirs is not None
            assert torch.equal(ours, theirs), trial
    assert data.published.read([0], "snow_1") is None
    missing = next((files / place / "fog" / "4").rglob("*.png"))
    missing.unlink()
    with pytest.raises(RobenchError, match="1 of 6 images of fog_4 are not there"):
        data.published.check(["fog_4"])


def saved(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        content = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", change(content))

    return do


def other_shape(content: Any) -> Any:
    return content[:, :-1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "labels.npy").unlink(), "labels.npy.*cannot be read"),
        (saved("labels", lambda labels: labels[:-1]), r"shape \(29,\): five severities of the 6"),
        (saved("labels", lambda labels: labels[::-1]), "another class than small"),
        (saved("fog", lambda images: images[:-1]), r"fog.npy has shape \(29, 6, 6, 1\), not 30"),
        (saved("fog", other_shape), r"shape \(1, 5, 6\), the clean samples \(1, 6, 6\)"),
        (saved("fog", lambda images: images.astype(np.int64)), "int64"),
        (lambda folder: (folder / "fog.npy").unlink(), "5 of the corruptions are not there.*fog"),
        (lambda folder: (folder / "fog.npy").write_bytes(b"no array"), "fog.npy.*cannot be read"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no corrupted images"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    arrays: Arrays, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(arrays.corrupted)
    with pytest.raises(RobenchError) as refused:
        prepare(request(arrays))
    text = f"{refused.value}"
    assert re.search(said, text), text


def test_the_whole_benchmark_has_to_be_there_unless_some_are_chosen(arrays: Arrays) -> None:
    every = Suite(
        name="c",
        attacks=(AttackSpec(name="c", attack="corruptions", norms=("corruptions",)),),
    )
    with pytest.raises(RobenchError, match=f"{5 * (len(BENCHMARK) - 2)} of the corruptions"):
        prepare(request(arrays, suite=every))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"suite": "quick", "norm": "Linf", "eps": "0.1"}, "is for --suite corruptions"),
        ({"executor": "ray"}, "no cluster has it"),
        ({"suite": suite(constants="cifar")}, "constants are what images are made with"),
    ],
)
def test_what_has_no_use_for_the_folder_refuses_it(
    arrays: Arrays, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(RobenchError, match=said):
        prepare(request(arrays, **given))


def test_folders_of_images_belong_to_image_files(arrays: Arrays) -> None:
    _, files = in_folders(arrays, ".")
    with pytest.raises(RobenchError, match="corrupted image files belong to clean ones"):
        load_dataset(arrays.clean, num_classes=6, corrupted=files)
    with pytest.raises(RobenchError, match="does not exist"):
        load_dataset(arrays.clean, num_classes=6, corrupted=files / "none")


def test_a_published_set_is_never_replaced_by_a_generated_one(arrays: Arrays) -> None:
    from robench.attacks import build_attack
    from robench.evaluation.samples import Samples
    from robench.evaluation.trials import images_of

    threat = ThreatModel.corruptions("small-c-0123456789ab")
    attack: Any = build_attack(suite().attacks[0], threat)
    inputs = arrays.data.batch(range(N))
    keys = sample_keys(0, arrays.data.sample_ids)
    samples = Samples(inputs, arrays.data.labels, torch.zeros(N, 6), keys)
    with pytest.raises(UsageError, match="comes without the images"):
        images_of(attack, samples, arrays.data, torch.arange(N))
