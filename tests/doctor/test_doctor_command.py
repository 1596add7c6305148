"""``robench doctor`` from a file to an exit code, and what a run keeps of it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from invoke_cli import invoke
from safetensors.torch import load_file
from torch import nn

import robench
from robench.datasets import load_dataset
from robench.doctor import examine
from robench.models import RobenchModel, find_card, load_model, wrap_module
from robench.records import AttackSpec, Suite

SOURCE = "digits/Linf-0.2/standard"
CIFAR = "ROBENCH_TEST_CIFAR10_FOLDER"
"""A folder with ``test/CLASS/*.jpg`` of CIFAR-10, for the tests that need real photographs."""


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Weights without a card, and the options that name their architecture."""
    monkeypatch.chdir(tmp_path)
    located = find_card(SOURCE)
    path = tmp_path / "best.pt"
    torch.save({"net": load_file(located.folder / "weights.safetensors")}, path)
    architecture = located.card.architecture
    arguments = [f"--arch-arg={k}={v}" for k, v in architecture.arguments.items()]
    return (path, "--arch", architecture.name, *arguments, "--dataset", "digits")


def test_a_sound_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("doctor", SOURCE)
    assert (done.code, done.err) == (0, "")
    assert "200 samples" in done.out
    assert "nothing found" in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_range_and_its_mend(checkpoint):
    wrong = invoke("doctor", *checkpoint, "--input", "high=255", "--n", 60)
    assert wrong.code == 1
    assert "input_reading" in wrong.out
    assert "Take the range" in wrong.out
    assert invoke("doctor", *checkpoint, "--n", 60).code == 0


def test_json_says_the_same(checkpoint):
    done = invoke("doctor", *checkpoint, "--input", "high=255", "--n", 60, "--json")
    assert done.code == 1
    assert done.json["n"] == 60
    first = done.json["findings"][0]
    assert first["name"] == "input_reading"
    assert set(first) == {"name", "severity", "evidence", "mend", "count"}


def test_a_note_alone_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = nn.Sequential(load_model("digits/Linf-0.2/pgd-at").network, nn.LogSoftmax(dim=1))
    with warnings.catch_warnings():
        # torch deprecates TorchScript, but the files are there.
        warnings.simplefilter("ignore")
        torch.jit.trace(network.eval(), torch.rand(2, 1, 8, 8)).save("program.pt")
    words = ("program.pt", "--arch", "program", "--dataset", "digits", "--trust-pickle")
    done = invoke("doctor", *words, "--n", 60)
    assert "note: log_softmax_outputs" in done.out
    assert done.code == 0


def test_classes_of_other_data(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).random((30, 1, 8, 8), dtype=np.float32)
    np.savez("three.npz", inputs=images, labels=np.arange(30) % 3)
    done = invoke("doctor", SOURCE, "--dataset", "three.npz", "--json")
    assert done.code == 1
    assert "num_classes" in [finding["name"] for finding in done.json["findings"]]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nosuch",), "nosuch"),
        ((SOURCE, "--n", 1000), "1000"),
        ((SOURCE, "--input", "high=255"), "--arch"),
        ((SOURCE, "--dataset", "digitz"), "digits"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    done = invoke("doctor", *arguments)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert word in done.err


def test_a_run_keeps_what_the_doctor_finds():
    data = load_dataset("digits").subset(20)
    inputs, labels = data.batch(range(20)), data.labels
    network = nn.Sequential(load_model(SOURCE).network, nn.Softmax(dim=1))
    suite = Suite(name="one", attacks=(AttackSpec(name="fgsm", attack="pgd", params={"steps": 1}),))
    records = robench.evaluate(network, (inputs, labels), suite, threat_model="Linf-0.1")
    flags = {flag.name: flag for flag in records[0].record.flags}
    assert flags["softmax_outputs"].severity == "severe"
    assert "Take the softmax out" in flags["softmax_outputs"].evidence


# --- the network that AutoAttack ships, on photographs ---------------------------------------


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    folder = os.environ.get(CIFAR)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{CIFAR} names no folder")
    data = load_dataset(folder, split="test").subset(48)
    return data.batch(range(48)), data.labels


def autoattacks_network(**card: object) -> RobenchModel:
    network = load_model("cifar10/Linf-8_255/pyautoattack-resnet18").network
    return wrap_module(network, num_classes=10, input=card, share=True)


def test_nothing_is_wrong_with_autoattacks_network():
    inputs, labels = photographs()
    assert examine(autoattacks_network(), inputs, labels, brief=True) == []


@pytest.mark.parametrize(
    "card",
    [
        {"high": 255.0},
        {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]},
        {"mean": [0.5], "std": [0.5]},
    ],
    ids=["in [0, 255]", "normalised", "in [-1, 1]"],
)
def test_a_wrong_card_for_it(card):
    inputs, labels = photographs()
    found = examine(autoattacks_network(**card), inputs, labels, brief=True)
    (reading,) = [finding for finding in found if finding.name == "input_reading"]
    assert "read as [0, 1]" in reading.evidence
    assert reading.mend.startswith("Take the range")


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        ("digits/Linf-0.2/pgd-at", 1, 8),
        pytest.param("cifar10/Linf-8_255/pyautoattack-resnet18", 3, 32, marks=pytest.mark.slow),
    ],
)
def test_a_wrong_range_shows_without_labels(name, channels, side):
    """Smooth noise is like no photograph, but it tells one range from another."""
    torch.manual_seed(0)
    coarse = torch.rand(2, channels, side // 8, side // 8)
    inputs = nn.functional.interpolate(coarse, size=side, mode="bilinear")
    labels = torch.zeros(2, dtype=torch.int64)
    card = {"channels": channels, "high": 255.0}
    model = wrap_module(load_model(name).network, num_classes=10, input=card, share=True)
    found = examine(model, inputs, labels, brief=True)
    (reading,) = [finding for finding in found if finding.name == "input_reading"]
    assert "batch normalisation" in reading.evidence
