"""Every way to bring a model starts from a file and ends with a row of the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brightness_network import level, trained
from fake_model_hubs import serve_hub, serve_robustbench
from invoke_cli import invoke
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

import robench
from robench.datasets import load_dataset
from robench.results import Store

pytestmark = pytest.mark.usefixtures("unexamined")

CLASSES = 10
KEYS = ("state_dict", "model_state", "params")
"""Where training programs put a state dict: some of the places of ``test_inspection.py``."""
N = 5
SUITE = """
[[attacks]]
name = "one-step"
attack = "pgd"
params = { steps = 1, relative_step_size = 1.0, random_start = false }
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the suite and ``images.npz``: (20, 3, 8, 8), brightness says the class."""
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(SUITE)
    arrays("images.npz", CLASSES)


def arrays(path: str, classes: int, size: int = 8) -> None:
    labels = np.arange(20) % classes
    noise = np.random.default_rng(0).uniform(-1e-3, 1e-3, (20, 3, size, size))
    inputs = np.stack([np.full((3, size, size), level(int(k), classes)) for k in labels]) + noise
    np.savez(path, inputs=inputs.clip(0, 1).astype(np.float32), labels=labels)


def rows_of(*arguments: object) -> dict[str, dict[str, Any]]:
    """The leaderboard of a run, by model."""
    done = invoke(
        *("run", *arguments, "--suite", "one.toml", "--n", N, "--no-plots", "--json"),
        *("--device", "cpu", "--precision", "fp32"),
    )
    assert done.code == 0, done.err
    assert Path("results/leaderboard.csv").is_file()
    return {row["model"]: row for row in done.json["leaderboard"]}


def by_arch(*files: str, arch: str = "brightness_network:build", more: tuple[str, ...] = ()) -> Any:
    return rows_of(*files, "--arch", arch, *more, "--dataset", "images.npz", "--eps", "4/255")


# --- from Python -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["tensors", "loader"])
def test_a_module_and_tensors_or_a_loader(way: str) -> None:
    content = np.load("images.npz")
    inputs, labels = torch.from_numpy(content["inputs"]), torch.from_numpy(content["labels"])
    data: Any = (inputs, labels)
    if way == "loader":
        data = DataLoader(TensorDataset(inputs, labels), batch_size=4, shuffle=True)
    network = trained(CLASSES)
    records = robench.evaluate(
        network,
        data,
        "one.toml",
        threat_model="Linf-4/255",
        n=N,
        name=way,
        results="results",
        device="cpu",
        precision="fp32",
    )
    assert records[0].record.n == N
    board = invoke("leaderboard", "--json", "--no-plots").json["leaderboard"]
    assert [(row["model"], row["clean_acc"]) for row in board] == [(way, 100.0)]


# --- weights files ---------------------------------------------------------------------------


def test_state_dicts_in_every_usual_place() -> None:
    """All files hold the same weights, so each row must say the same."""
    state = trained(CLASSES).state_dict()
    contents: dict[str, Any] = {"bare": state}
    # Every prefix has its turn in test_inspection.py.
    for key, prefix in zip(KEYS, ("", "_orig_mod.", "module._orig_mod."), strict=True):
        prefixed = {prefix + name: value for name, value in state.items()}
        contents[f"at-{key}"] = {"epoch": 3, key: prefixed, "optimizer": {"lr": 0.1}}
    contents["deeper"] = {"model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}}
    files = []
    for name, content in contents.items():
        files.append(f"{name}.pt")
        torch.save(content, files[-1])
    torch.save({"net": state}, "legacy.pt", _use_new_zipfile_serialization=False)
    rows = by_arch(*files, "legacy.pt")
    assert rows.keys() == {*contents, "legacy"}
    assert {(row["clean_acc"], row["robust_acc"], row["n"]) for row in rows.values()} == {
        (100.0, 100.0, N)
    }


def test_safetensors_shards_and_half_precision() -> None:
    state = trained(CLASSES).state_dict()
    save_file(state, "whole.safetensors")
    names = sorted(state)
    for file, part in (("a.safetensors", names[:1]), ("b.safetensors", names[1:])):
        save_file({name: state[name] for name in part}, file)
    mapping = {n: "a.safetensors" if n == names[0] else "b.safetensors" for n in names}
    Path("shards.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    torch.save({k: v.half() for k, v in state.items()}, "fp16.pt")
    save_file({k: v.bfloat16() for k, v in state.items()}, "bf16.safetensors")
    rows = by_arch(
        "whole.safetensors", "shards.safetensors.index.json", "fp16.pt", "bf16.safetensors"
    )
    assert len(rows) == 4
    assert {row["clean_acc"] for row in rows.values()} == {100.0}


def test_a_callable_with_arguments() -> None:
    torch.save(trained(CLASSES).state_dict(), "own.pt")
    sharp = by_arch("own.pt", more=("--arch-arg", "sharpness=200"))
    assert sharp["own"]["clean_acc"] == 100.0
    records = [stored.record for stored in Store("results").records()]
    assert records[0].model.architecture == "brightness_network:build"
    flat = by_arch("own.pt", more=("--arch-arg", "sharpness=-1"))
    assert flat["own"]["clean_acc"] < 50.0, "the argument reached the network"


@pytest.mark.parametrize(
    "arch",
    [
        # Others of torchvision and timm are evaluated as docs/your-own-model.md has it.
        pytest.param("torchvision:squeezenet1_1", marks=pytest.mark.slow),
        pytest.param("timm:test_resnet", marks=pytest.mark.slow),
        "digits_resnet",
    ],
)
def test_networks_of_libraries(arch: str) -> None:
    library, _, name = arch.rpartition(":")
    torch.manual_seed(0)
    if library == "timm":
        network = pytest.importorskip("timm").create_model(name, num_classes=CLASSES)
    elif library:
        from torchvision.models import get_model

        network = get_model(name, weights=None, num_classes=CLASSES)
    else:
        from robench.models.catalogue import ARCHITECTURES

        network = ARCHITECTURES[name](num_classes=CLASSES, in_channels=3)
    if library:
        arrays("images.npz", CLASSES, size=32)
    torch.save({"state_dict": network.state_dict()}, "net.pt")
    rows = by_arch("net.pt", arch=arch, more=("--input", "mean=0.5", "--input", "std=0.25"))
    # Untrained, so what it says is not known; but what the same network says from Python is.
    chosen = load_dataset("images.npz", n=N)
    with torch.no_grad():
        logits = network.eval()((chosen.batch(range(N)) - 0.5) / 0.25)
    expected = 100 * float((logits.argmax(1) == chosen.labels).float().mean())
    assert rows["net"]["clean_acc"] == pytest.approx(expected)


# --- programs --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_torchscript_and_exported_programs() -> None:
    network = trained(CLASSES)
    example = torch.rand(2, 3, 8, 8)
    torch.jit.trace(network, example).save("traced.pt")
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(
        torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), "exported.pt2"
    )
    rows = by_arch("traced.pt", "exported.pt2", arch="program", more=("--trust-pickle",))
    assert {name: row["clean_acc"] for name, row in rows.items()} == {
        "traced": 100.0,
        "exported": 100.0,
    }


# --- collections -----------------------------------------------------------------------------


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    root = serve_hub(monkeypatch, tmp_path / "hub")
    place = root / "someone" / "tiny"
    place.mkdir(parents=True)
    config = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3},
    }
    (place / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5)
    save_file(network.state_dict(), place / "model.safetensors")
    arrays("five.npz", 5)
    rows = rows_of("hf:someone/tiny", "--dataset", "five.npz", "--eps", "4/255")
    assert list(rows) == ["someone_tiny"]
    assert rows["someone_tiny"]["n"] == N


def test_a_model_of_robustbench(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_robustbench(monkeypatch, {"Known2023": trained(CLASSES)})
    rows = rows_of("robustbench:cifar10/Linf/Known2023", "--dataset", "images.npz")
    assert rows["Known2023"]["clean_acc"] == 100.0
    assert rows["Known2023"]["eps"] == "8/255"


def test_a_card_made_by_zoo_add() -> None:
    torch.save({"ema": trained(CLASSES).state_dict()}, "mine.pt")
    added = invoke(
        *("zoo", "add", "mine.pt", "--arch", "brightness_network:build"),
        *("--dataset", "images.npz", "--eps", "4/255"),
    )
    assert added.code == 0, added.err
    assert invoke("zoo", "verify", "mine").code == 0
    assert rows_of("mine", "--dataset", "images.npz")["mine"]["clean_acc"] == 100.0
