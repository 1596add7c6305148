"""Other collections, through fakes of their packages' download calls."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_model_hubs import serve_hub, serve_robustbench
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms as T

from robench.datasets import Preprocessing
from robench.errors import (
    CheckpointError,
    MissingDependencyError,
    UnsafeCheckpointError,
    UsageError,
)
from robench.models import load_model
from robench.models.sources import fetch_hub_weights
from robench.records import PreprocessingSpec

INPUTS = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
ADDRESS = "hf:someone/tiny_vit"
CONFIG = {
    "architecture": "test_vit",
    "num_classes": 5,
    "pretrained_cfg": {
        "input_size": [3, 160, 160],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
    },
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plays the repository ``someone/tiny_vit``."""
    root = serve_hub(monkeypatch, tmp_path) / "someone" / "tiny_vit"
    root.mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def network() -> nn.Module:
    from timm import create_model

    torch.manual_seed(0)
    built: nn.Module = create_model("test_vit", num_classes=5)
    return built.eval()


def by_hand(network: nn.Module) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    logits: torch.Tensor = network((INPUTS - mean) / std)
    return logits


def test_a_timm_model_of_the_hub_needs_no_card(hub: Path, network: nn.Module) -> None:
    (hub / "config.json").write_text(json.dumps(CONFIG))
    save_file(network.state_dict(), hub / "model.safetensors")
    model = load_model(ADDRESS)
    torch.testing.assert_close(model(INPUTS), by_hand(network))
    assert model.summary.id == "custom/Linf-8_255/someone_tiny_vit"
    assert model.summary.architecture == "timm:test_vit"
    torch.testing.assert_close(load_model(f"{ADDRESS}@main")(INPUTS), model(INPUTS))


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_pct": 0.9, "crop_mode": "squash"},
        {"crop_pct": None, "interpolation": None},
    ],
)
def test_the_preprocessing_is_timms(hub: Path, network: nn.Module, told: dict[str, Any]) -> None:
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    details = {**CONFIG["pretrained_cfg"], **told}
    (hub / "config.json").write_text(json.dumps({**CONFIG, "pretrained_cfg": details}))
    save_file(network.state_dict(), hub / "model.safetensors")
    told_by_card = load_model(ADDRESS).preprocessing
    assert told_by_card is not None
    pixels = torch.randint(0, 256, (9, 7, 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.byte().numpy()).resize((300, 260), Image.Resampling.BICUBIC)
    config = resolve_data_config(pretrained_cfg={k: v for k, v in details.items() if v is not None})
    transform = create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    ours = Preprocessing.model_validate(told_by_card.model_dump()).image(image)
    torch.testing.assert_close(ours, transform(image), atol=1e-6, rtol=0)


def test_shards_of_the_hub_are_fetched(hub: Path, network: nn.Module) -> None:
    (hub / "config.json").write_text(json.dumps(CONFIG))
    state = list(network.state_dict().items())
    parts = {"a.safetensors": dict(state[:10]), "b.safetensors": dict(state[10:])}
    for name, part in parts.items():
        save_file(part, hub / name)
    mapping = {key: name for name, part in parts.items() for key in part}
    index = hub / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": mapping}))
    torch.testing.assert_close(load_model(ADDRESS)(INPUTS), by_hand(network))
    (hub / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names a shard 'b\.safetensors' that it lacks"):
        load_model(ADDRESS)
    index.write_text(json.dumps({"weight_map": {"w": "../../secret"}}))
    with pytest.raises(CheckpointError, match="secret"):
        load_model(ADDRESS)


def test_pickles_of_the_hub_are_refused_like_any_other(hub: Path, network: nn.Module) -> None:
    (hub / "config.json").write_text(json.dumps(CONFIG))
    torch.save(network, hub / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match="would execute code"):
        load_model(ADDRESS)
    torch.save(network.state_dict(), hub / "pytorch_model.bin")
    assert fetch_hub_weights("someone/tiny_vit") == hub / "pytorch_model.bin"
    torch.testing.assert_close(load_model(ADDRESS)(INPUTS), by_hand(network))


@pytest.mark.parametrize(
    "config, words",
    [
        (None, "describes no image classifier"),
        ({"architectures": ["ViTForImageClassification"]}, "describes no image classifier"),
        ("{", "config.json is damaged"),
        ([], "config.json is no JSON object"),
        ({**CONFIG, "pretrained_cfg": {"input_size": 3}}, "config.json: "),
        ({**CONFIG, "num_classes": "many"}, "config.json: "),
    ],
)
def test_other_repositories_are_explained(
    hub: Path, network: nn.Module, config: Any, words: str
) -> None:
    save_file(network.state_dict(), hub / "model.safetensors")
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (hub / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words) as raised:
        load_model(ADDRESS)
    assert "\n" not in str(raised.value)


def test_unreachable_and_malformed_addresses(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="cannot be fetched: 401 no such repository"):
        load_model("hf:someone/else")
    with pytest.raises(CheckpointError, match="cannot be fetched: no connection"):
        load_model(f"{ADDRESS}@offline")
    (hub / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"has none of model\.safetensors"):
        load_model(ADDRESS)
    for address in ("hf:vit", "hf:a/b/c", "hf:a b/c"):
        with pytest.raises(UsageError, match="is not a repository of the Hub"):
            load_model(address)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install robench\[hub\]"):
        load_model(ADDRESS)


# --- RobustBench -------------------------------------------------------------------------------


@pytest.fixture
def robustbench(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))

    serve_robustbench(monkeypatch, {"Known2023_WRN": network})
    return network


def test_a_robustbench_model_by_its_name(robustbench: nn.Module) -> None:
    model = load_model("robustbench:cifar10/L2/Known2023_WRN")
    inputs = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(model(inputs), robustbench(inputs))
    assert model.summary.id == "cifar10/L2-0.5/Known2023_WRN"


def test_a_working_folder_does_not_answer_for_robustbench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    folders = serve_robustbench(monkeypatch, {"Known2023_WRN": network})
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path / "cache"))
    load_model("robustbench:cifar10/L2/Known2023_WRN")
    assert folders == [str(tmp_path / "cache" / "robustbench")]


def _robustbench_says(monkeypatch: pytest.MonkeyPatch, transform: Any) -> None:
    """What RobustBench's package has beside ``load_model``."""
    data, zoo, enums = (types.ModuleType(f"robustbench{n}") for n in (".data", ".zoo", ".enums"))
    data.get_preprocessing = (  # type: ignore[attr-defined]
        lambda dataset, threat, name, given: transform if name == "Known2023_WRN" else None
    )
    enums.BenchmarkDataset = enums.ThreatModel = str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench.data", data)
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", zoo)
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo.enums", enums)


@pytest.mark.parametrize(
    "steps, expected",
    [
        ([T.Resize(256), T.CenterCrop(224)], {"resize": 256, "crop": 224}),
        ([T.CenterCrop(288)], {"crop": 288}),
        ([T.Resize((32, 48))], {"size": (32, 48)}),
        (
            [T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224)],
            {"resize": 256, "crop": 224, "interpolation": "bicubic"},
        ),
        ([T.Grayscale()], None),
        ([T.CenterCrop(224), T.Resize(256)], None),
    ],
)
def test_what_robustbench_does_to_images_is_kept_or_said_to_be_unknown(
    robustbench: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[Any],
    expected: dict[str, Any] | None,
) -> None:
    _robustbench_says(monkeypatch, T.Compose([*steps, T.ToTensor()]))
    model = load_model("robustbench:imagenet/Linf/Known2023_WRN")
    if expected is None:
        assert model.preprocessing is None
        assert [flag.name for flag in model.remarks] == ["preprocessing_unknown"]
    else:
        assert model.preprocessing == PreprocessingSpec(**expected)
        assert model.remarks == ()
    # Data sets of one size need none.
    assert load_model("robustbench:cifar10/L2/Known2023_WRN").remarks == ()


def test_a_robustbench_without_preprocessings_is_said(robustbench: nn.Module) -> None:
    (flag,) = load_model("robustbench:imagenet/Linf/Known2023_WRN").remarks
    assert flag.name == "preprocessing_unknown"


def test_robustbench_errors(robustbench: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded: KeyError"):
        load_model("robustbench:cifar10/L2/Unknown")
    with pytest.raises(UsageError, match="Use cifar10/Linf"):
        load_model("robustbench:cifar10/linf/Known2023_WRN")
    for address in ("cifar10/L2", "Known2023_WRN", "cifar10/L2/a/b"):
        with pytest.raises(UsageError, match="not a RobustBench address"):
            load_model(f"robustbench:{address}")
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    with pytest.raises(MissingDependencyError, match="robustbench is not installed"):
        load_model("robustbench:cifar10/L2/Known2023_WRN")
