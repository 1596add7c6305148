"""Image classifiers of transformers: from a folder as ``save_pretrained`` leaves it to logits and pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from robench.datasets import Preprocessing
from robench.errors import CardError, CheckpointError, RobenchError, UnknownNameError
from robench.models import load_checkpoint, load_model
from robench.models.architectures.transformers_library import _as_it_was
from robench.models.code_identity import code_identity
from robench.models.sources import hub_card
from robench.models.transformers_repositories import described, is_classifier
from robench.records import PreprocessingSpec

KINDS: dict[str, dict[str, Any]] = {
    "ViT": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    },
    "Swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "ConvNext": {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 2},
    "ResNet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}
MAPS = {"ViT": (4, 4), "Swin": (8, 8), "ConvNext": (2, 2), "ResNet": (4, 4)}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
INPUTS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 5}


def saved(kind: str, folder: Path) -> Any:
    """A tiny network of this kind, and its folder."""
    import transformers

    configuration = getattr(transformers, f"{kind}Config")(num_labels=5, **KINDS[kind])
    torch.manual_seed(0)
    with _as_it_was(torch.nn.Module):
        network = transformers.AutoModelForImageClassification.from_config(configuration).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # scales that start at next to nothing
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return network


def by_hand(network: Any) -> Tensor:
    mean, std = (
        torch.tensor(PROCESSOR[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std")
    )
    with torch.no_grad():
        logits: Tensor = network((INPUTS - mean) / std).logits
    return logits


@pytest.mark.parametrize(
    "kind", ["ViT", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "ViT")]
)
def test_a_saved_folder_becomes_a_model_with_a_map(kind: str, tmp_path: Path) -> None:
    from robench.attention import AttentionExtractor

    network = saved(kind, tmp_path / "tiny")
    other = code_identity(torch.nn.ReLU())
    model = load_model(f"hf:{tmp_path / 'tiny'}")
    assert code_identity(torch.nn.ReLU()) == other
    torch.testing.assert_close(model(INPUTS), by_hand(network))
    assert model.num_classes == 5
    assert model.summary.name == "tiny"
    assert model.summary.architecture == f"transformers:{network.config.model_type}"
    assert model.preprocessing == PreprocessingSpec(size=(32, 32))
    maps = AttentionExtractor(model)(INPUTS, torch.tensor([0, 1]))
    assert maps.shape == (2, *MAPS[kind])
    assert float(maps.sum()) > 0
    # The card is whole: the same network from its architecture and the weights alone.
    architecture = hub_card(str(tmp_path / "tiny")).architecture
    alone = load_checkpoint(tmp_path / "tiny" / "model.safetensors", architecture, num_classes=5)
    with torch.no_grad():
        torch.testing.assert_close(alone(INPUTS), network(INPUTS).logits)
    if kind == "ViT":
        misspelt = architecture.model_copy(update={"arguments": {"hiden_size": 16}})
        with pytest.raises(CardError, match=r"no argument 'hiden_size'.*'hidden_size'"):
            load_checkpoint(tmp_path / "tiny" / "model.safetensors", misspelt, num_classes=5)
        unknown = architecture.model_copy(update={"name": "transformers:vitt"})
        with pytest.raises(UnknownNameError, match="vitt"):
            load_checkpoint(tmp_path / "tiny" / "model.safetensors", unknown, num_classes=5)


def spec_of(processor: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        "robench.models.transformers_repositories.configuration_fields", lambda *_: {}
    )
    return described(CONFIG, processor)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, {"size": (32, 32)}),
        ({"size": 48}, {"size": (48, 48)}),
        ({"do_resize": False}, {}),
        ({"resample": 3}, {"size": (32, 32), "interpolation": "bicubic"}),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
            | {"crop_pct": 0.875},
            {"resize": 256, "crop": 224},
        ),
        (
            {"image_processor_type": "ConvNextImageProcessorFast", "size": {"shortest_edge": 384}},
            {"size": (384, 384)},
        ),
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "image_processor_type": None}
            | {"size": 192, "crop_pct": 0.9},
            {"resize": 213, "crop": 192},
        ),
        (
            {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 72}}
            | {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
            {"resize": 72, "crop": 64},
        ),
    ],
)
def test_how_images_are_prepared_is_the_processors(
    told: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spec_of({**PROCESSOR, **told}, monkeypatch).preprocessing == PreprocessingSpec(
        **expected
    )


def test_how_values_are_scaled_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    found = spec_of(PROCESSOR, monkeypatch).input
    assert (found.low, found.high, found.mean, found.size) == (0.0, 1.0, (0.5, 0.4, 0.3), (32, 32))
    assert spec_of({**PROCESSOR, "do_rescale": False}, monkeypatch).input.high == 255.0
    plain = spec_of({**PROCESSOR, "do_normalize": False}, monkeypatch).input
    assert (plain.mean, plain.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    "told",
    [
        {"do_pad": True},
        {"size": {"longest_edge": 32}},
        {"crop_pct": 0.9},
        {"do_center_crop": True, "crop_size": {"height": 32, "width": 24}},
        {"resample": 5},
    ],
)
def test_what_no_card_can_say_is_refused(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"unknown here|interpolation"):
        spec_of({**PROCESSOR, **told}, monkeypatch)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "no image classifier"),
        ({"model_type": "vit"}, "no image classifier"),
        ({"architectures": ["ViTForImageClassification"]}, "no image classifier"),
        (CONFIG, "no preprocessor_config.json"),
    ],
)
def test_other_folders_are_explained(config: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        load_model(f"hf:{tmp_path}")
    assert is_classifier(CONFIG)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RobenchError, match="the folder does not exist"):
        load_model(f"hf:{tmp_path / 'none'}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 24, "width": 32}}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
        (
            "BitImageProcessorPil",
            {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
        ),
    ],
)
def test_pixels_are_those_of_the_processor(
    name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers

    processor = getattr(transformers, name)(**given)
    processor.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "preprocessor_config.json").read_text())
    found = spec_of(told, monkeypatch)
    levels = torch.randint(0, 256, (9, 7, 3), generator=torch.Generator().manual_seed(0)).byte()
    image = Image.fromarray(levels.numpy()).resize((70, 50), Image.Resampling.BICUBIC)
    ours = Preprocessing.model_validate(found.preprocessing.model_dump()).image(image)
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (found.input.mean, found.input.std)
    )
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close((ours * found.input.high - mean) / std, theirs, atol=1e-5, rtol=0)
