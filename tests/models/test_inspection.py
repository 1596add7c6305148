from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import one_at_a_time
from torch import nn

from robench.errors import CheckpointError, KeyMismatchError
from robench.models import draft_card, load_checkpoint, read_checkpoint
from robench.models.architectures.resnet import DigitsResNet
from robench.models.checkpoints import CheckpointFormat, checkpoint_sha256, detect_format
from robench.models.drafting import find_state_dicts, matching_prefix
from robench.records import ArchitectureSpec, InputSpec

SPEC = ArchitectureSpec(name="digits_resnet", arguments={"width": 2})
GRAY = InputSpec(channels=1)
INPUTS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> DigitsResNet:
    torch.manual_seed(0)
    return DigitsResNet(width=2).eval()


def prefixed(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in network.state_dict().items()}


KEYS = [
    *("state_dict", None, "net", "model", "model_state", "model_state_dict", "ema", "student"),
    *("network", "params", "weights", "last", "best", "module", "state_dict_ema", "model_ema"),
    "checkpoint.model.state_dict",
]
PREFIXES = [
    *("module.", "", "_orig_mod.", "model.", "network.", "net.", "encoder.", "module.model."),
    "_orig_mod.module.network.",
]


@pytest.mark.parametrize(("key", "prefix"), one_at_a_time(KEYS, PREFIXES))
def test_places_and_prefixes_are_guessed(
    network: DigitsResNet, tmp_path: Path, key: str | None, prefix: str
) -> None:
    content: Any = prefixed(network, prefix)
    for part in reversed((key or "").split(".") if key else []):
        content = {part: content, "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}
    torch.save(content, tmp_path / "file.pt")
    found = find_state_dicts(read_checkpoint(tmp_path / "file.pt"))
    assert list(found) == [key]
    assert found[key][f"{prefix}fc.weight"].shape == (10, 2)
    card = draft_card(tmp_path / "file.pt", SPEC, num_classes=10, input=GRAY)
    assert (card.weights.key, card.weights.strip_prefix) == (key, prefix)
    model = load_checkpoint(tmp_path / "file.pt", SPEC, num_classes=10, input=GRAY)
    torch.testing.assert_close(model(INPUTS), network(INPUTS), rtol=0, atol=0)


def test_plain_weights_come_before_averaged_ones(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    averaged = {name: value * 0 for name, value in network.state_dict().items()}
    torch.save({"ema": averaged, "model": network.state_dict(), "args": {"lr": 0.1}}, path)
    assert list(find_state_dicts(read_checkpoint(path))) == ["model", "ema"]
    model = load_checkpoint(path, SPEC, num_classes=10, input=GRAY)
    torch.testing.assert_close(model(INPUTS), network(INPUTS))
    chosen = load_checkpoint(path, SPEC, num_classes=10, input=GRAY, key="ema")
    assert chosen(INPUTS).abs().max() == 0
    with pytest.raises(CheckpointError, match=r"no state dict at key 'best'.*'model', 'ema'"):
        load_checkpoint(path, SPEC, num_classes=10, key="best")


def test_the_architecture_decides_among_state_dicts(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    critic = nn.Linear(100, 100).state_dict()
    torch.save({"model": critic, "generator": network.state_dict()}, path)
    assert list(find_state_dicts(read_checkpoint(path))) == ["model", "generator"]
    model = load_checkpoint(path, SPEC, num_classes=10, input=GRAY)
    torch.testing.assert_close(model(INPUTS), network(INPUTS))


def test_a_prefix_may_belong_to_the_network() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

    assert matching_prefix(Outer(), {"model.weight": 0, "model.bias": 0}) == ""
    names = {"module.model.weight": 0, "module.model.bias": 0}
    assert matching_prefix(Outer(), names) == "module."
    assert matching_prefix(nn.Linear(2, 2), names) == "module.model."
    assert matching_prefix(nn.Linear(2, 2), {"x.weight": 0, "x.bias": 0}) is None


def test_files_without_a_state_dict_say_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    for content, words in [
        ({"epoch": 3, "w": [torch.ones(1)]}, "holds no state dict, only epoch: 3, w: list"),
        (torch.ones(3), r"only the file: tensor \(3,\)"),
        ({}, "holds no state dict"),
    ]:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=words):
            draft_card(path, SPEC, num_classes=10)


def test_a_wrong_architecture_lists_the_differences(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"net": prefixed(network, "module.")}, path)
    with pytest.raises(KeyMismatchError, match=r"missing from the file: layer1\.0"):
        load_checkpoint(path, "resnet18", num_classes=10)
    with pytest.raises(KeyMismatchError, match=r"set num_classes to 10"):
        load_checkpoint(path, SPEC, num_classes=3, input=GRAY)


def test_the_drafted_card_describes_the_file(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "my model (v2)!.pt"
    torch.save({"net": prefixed(network, "module.")}, path)
    card = draft_card(path, SPEC, num_classes=10, dataset="digits", threat_model="L2-0.5")
    assert card.id == "digits/L2-0.5/my-model-v2"
    assert (card.weights.key, card.weights.strip_prefix) == ("net", "module.")
    assert card.weights.sha256 == checkpoint_sha256(path)
    forced = draft_card(path, SPEC, num_classes=10, prefix="")
    assert forced.weights.strip_prefix == ""


def test_formats_are_told_by_content(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"  # the name lies
    torch.save(network.state_dict(), path)
    assert detect_format(path) is CheckpointFormat.TORCH_ZIP
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert detect_format(path) is CheckpointFormat.TORCH_LEGACY
