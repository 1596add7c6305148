"""``robench judge``, and what the other commands make of its record."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invoke_cli import invoke
from PIL import Image

from robench.datasets import load_dataset
from robench.models import load_model

MODEL = "digits/Linf-0.2/pgd-at"
N = 30


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with FGSM's inputs, as another library would save them, and what judging said."""
    folder = tmp_path_factory.mktemp("judge")
    samples = load_dataset("digits", n=N)
    inputs = samples.batch(range(N)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(load_model(MODEL)(inputs), samples.labels)
    (gradient,) = torch.autograd.grad(loss, inputs)
    adv_inputs = (inputs + 0.2 * gradient.sign()).clamp(0, 1).detach()
    file = folder / "fgsm.npz"
    np.savez(file, x_adv=adv_inputs.movedim(1, -1).numpy(), y=samples.labels.numpy())
    done = invoke("judge", MODEL, file, "--n", N, "--results", folder / "results", "--json")
    assert done.code == 0, done.err
    return folder, done.json


def test_it_says_what_counts_and_why_the_rest_does_not(judged: tuple[Path, Any]) -> None:
    folder, said = judged
    inside = said["judged"]
    assert inside["inputs"] == N == inside["finds"] + sum(inside["not_counted"].values())
    assert 0 < inside["finds"] < N
    assert said["counts"]["broken"] == inside["finds"]
    done = invoke("judge", MODEL, folder / "fgsm.npz", "--n", N, "--results", folder / "results")
    lines = done.out.splitlines()
    assert any(
        line.split() == ["finds", f"{inside['finds']}", *f"of {N} inputs".split()] for line in lines
    )
    assert any("NHWC" in line for line in lines if line.startswith("read as"))
    assert any(line.startswith("in 8 bits") for line in lines)
    assert (
        len(invoke("results", "list", "--results", folder / "results", "--json").json["records"])
        == 1
    )


def test_leaderboard_and_verify_work_on_it(judged: tuple[Path, Any]) -> None:
    folder, said = judged
    board = invoke("leaderboard", "--results", folder / "results", "--no-plots", "--json").json
    (row,) = board["leaderboard"]
    assert row["best_known_acc"] == round(said["robust_acc"], 2)
    assert (row["rank"], row["validity"].split(";")[0]) == (None, "judged_only")
    done = invoke("results", "verify", "--results", folder / "results", "--json")
    (found,) = done.json
    assert done.code == 0
    assert found["finds_in_8_bits"] == said["judged"]["finds_in_8_bits"]
    finds = said["judged"]["finds"]
    saved = f"{found['finds_in_8_bits']} of {finds} finds survive rounding to 8 bits"
    assert found["finding"] == f"{found['judged']} verdicts hold; {saved}"


def test_pngs_hold_what_the_index_says(judged: tuple[Path, Any]) -> None:
    folder, said = judged
    results, out = folder / "results", folder / "pictures"
    done = invoke("export", "--results", results, "--format", "png", "--out", out)
    assert done.code == 0, done.err
    index = Path(done.out.strip())
    assert index.parent.parent == out
    with index.open() as stream:
        rows = list(csv.DictReader(stream))
    model, samples = load_model(MODEL), load_dataset("digits", n=N)
    place = {name: i for i, name in enumerate(samples.sample_ids)}
    assert {path.name for path in index.parent.iterdir()} == {
        "index.csv",
        *(r["file"] for r in rows),
    }
    for row in rows:
        with Image.open(index.parent / row["file"]) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            pixels = torch.from_numpy(np.array(image)).float()[None, None] / 255
        i = place[row["sample_id"]]
        assert int(row["label"]) == int(samples.labels[i])
        assert int(row["adv_prediction"]) == int(model(pixels).argmax())
        assert row["clean_prediction"] == row["label"]
        inside = float((pixels - samples.batch([i])).abs().max()) <= 0.2 + 1e-6
        assert (row["is_find"] == "True") == (inside and row["adv_prediction"] != row["label"])
    assert sum(row["is_find"] == "True" for row in rows) >= said["judged"]["finds_in_8_bits"]
    assert sum(row["outcome"] == "broken" for row in rows) == said["judged"]["finds"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_adv": np.zeros((N, 8, 9, 1), np.float32)}, "the inputs have shape (30, 8, 9, 1)"),
        ({"x_adv": np.zeros((N - 1, 8, 8, 1), np.float32)}, "29 inputs without ids for 30 samples"),
        ({"x_adv": np.zeros((N, 8, 8), np.float32), "y": np.arange(N) % 2}, "labels are not the"),
        ({"x_adv": np.full((N, 8, 8), 200.0, np.float32)}, "not [0, 1]. Divide them by 255"),
    ],
)
def test_another_file_is_refused_in_one_line_and_files_nothing(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    done = invoke("judge", MODEL, tmp_path / "bad.npz", "--n", N, "--results", tmp_path / "out")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_adversarial_inputs_has_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    out = tmp_path / "out"
    done = invoke("export", "--results", tmp_path / "results", "--format", "png", "--out", out)
    assert done.code == 2
    assert "there are no records to export" in done.err
    assert not out.exists()
