"""What a card says of preparing images reaches the samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from invoke_cli import invoke
from PIL import Image
from torch import nn

import robench
from robench.datasets import load_dataset
from robench.models import load_model
from robench.models.zoo import find_card
from robench.results import Store

pytestmark = pytest.mark.usefixtures("unexamined")

NETWORK = """
from torch import nn

def build(side, num_classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, num_classes))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures of 20x16, dark cats and bright dogs, and a way to add linear models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prepared_network.py").write_text(NETWORK)
    random = np.random.default_rng(0)
    for row in range(12):
        place = tmp_path / "pets" / ("cat", "dog")[row % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 100, (16, 20, 3)) + 150 * (row % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{row}.png")
    return tmp_path


def linear(side: int, threshold: float = 0.5) -> dict[str, torch.Tensor]:
    """Brightness above the threshold is a dog."""
    network = nn.Linear(3 * side * side, 2)
    weight = torch.stack([-torch.ones(3 * side * side), torch.ones(3 * side * side)])
    half = 3 * side * side * threshold
    network.load_state_dict({"weight": weight, "bias": torch.tensor([half, -half])})
    return {f"1.{key}": value for key, value in network.state_dict().items()}


def add(side: int, *options: str, name: str | None = None, threshold: float = 0.5):
    name = name or f"side-{side}"
    torch.save(linear(side, threshold), f"{name}.pt")
    done = invoke(
        *("zoo", "add", f"{name}.pt", "--arch", "prepared_network:build"),
        *(f"--arch-arg=side={side}", "--dataset", "pets", "--eps", "0.1"),
        *(f"--dataset-option={option}" for option in options),
    )
    assert done.code == 0, done.err
    return find_card(name).card


def test_each_model_sees_its_own_samples(folder):
    first = add(8, "size=8,8", "interpolation=bicubic")
    assert first.preprocessing.model_dump(exclude_none=True) == {
        "size": (8, 8),
        "interpolation": "bicubic",
    }
    assert add(6, "resize=10", "crop=6").preprocessing.crop == 6
    assert "crop = 6" in (folder / "model_zoo/pets/Linf-0.1/side-6/card.toml").read_text()
    ran = invoke(
        *("run", "side-8", "side-6", "--dataset", "pets", "--suite", "quick", "--no-plots"),
        "--json",
    )
    assert ran.code == 0, ran.err
    rows = {row["model"]: row for row in ran.json["leaderboard"]}
    assert rows["side-8"]["clean_acc"] == rows["side-6"]["clean_acc"] == 100
    expected = {
        "side-8": load_dataset("pets", size=8, interpolation="bicubic"),
        "side-6": load_dataset("pets", resize=10, crop=6),
    }
    for stored in Store("results").records():
        assert stored.record.dataset.fingerprint == expected[stored.record.model.name].fingerprint
    # From Python too; and the doctor looks at the same pixels.
    records = robench.evaluate("side-6", "pets", "quick", n=4)
    assert records[0].record.dataset.fingerprint == expected["side-6"].subset(4).fingerprint
    assert invoke("doctor", "side-8").code in (0, 1)
    assert load_model("side-8").preprocessing == first.preprocessing
    # What the user says comes first.
    told = invoke("run", "side-8", "--dataset", "pets", "--dataset-option", "size=6", "--no-plots")
    assert told.code == 2
    assert "does not take pets's inputs (8, 3, 6, 6)" in told.err


@pytest.mark.usefixtures("saved_unseen")
def test_pictures_show_the_samples_as_they_were_prepared(folder, monkeypatch):
    monkeypatch.setattr("robench.inspection.comparison_pictures._MOST", 2)
    for name, threshold in (("sound", 0.5), ("weak", 0.75)):
        add(8, "size=8,8", name=name, threshold=threshold)
    ran = invoke(
        *("run", "sound", "weak", "--dataset", "pets", "--suite", "quick", "--no-plots"),
        "--save-adversarial",
    )
    assert ran.code == 0, ran.err
    (prepared,) = {stored.record.dataset.preprocessing for stored in Store("results").records()}
    assert prepared.size == (8, 8)
    done = invoke("compare", "sound", "weak", "--dataset", "pets", "--pictures", "pictures")
    assert done.code == 0, done.err
    assert list((folder / "pictures").glob("resisted_by_sound_not_by_weak*")), done.out


def test_sets_of_one_size_stay_as_they_are(folder):
    samples = load_dataset("pets", size=8)
    np.savez("pets.npz", inputs=samples.batch(range(12)).numpy(), labels=samples.labels.numpy())
    add(8, "size=8")
    assert invoke("doctor", "side-8", "--dataset", "pets.npz").code in (0, 1)
    digits = load_dataset("digits", n=5, preprocessing=find_card("side-8").card.preprocessing)
    assert digits.input_shape == (1, 8, 8)
    assert digits.preprocessing is None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("size=a", "size"),
        ("interpolation=cubic", "interpolation"),
        ("resize=0", "resize"),
        ("colour=1", "has no option 'colour'"),
    ],
)
def test_wrong_options_are_one_line(folder, option, words):
    done = invoke(
        "doctor", "digits/Linf-0.2/standard", "--dataset", "pets", "--dataset-option", option
    )
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err
