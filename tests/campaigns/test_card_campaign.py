"""Any card: it is read as it is written and loads what it describes, or one line says what is wrong."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import described
import pytest
import torch
from campaign import campaign
from canary import is_one_line, nothing_happens, one_line_errors, plant
from hostile_toml import ANYTHING, CODE, GONE, PLACES, put, read, spoilt, toml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from robench.errors import CardError, RobenchError
from robench.models import load_model
from robench.models.architectures.resnet import DigitsResNet
from robench.models.cards import format_card, parse_card, read_card
from robench.records import ModelCard

torch.manual_seed(0)
NETWORK = DigitsResNet(width=2).eval()
WEIGHTS = save({name: tensor.contiguous() for name, tensor in NETWORK.state_dict().items()})
INPUTS = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))

SOUND = {
    "name": "tiny",
    "dataset": "digits",
    "num_classes": 10,
    "threat_model": "Linf-8/255",
    "defense": "standard",
    "architecture": {"name": "digits_resnet", "arguments": {"width": 2}},
    "weights": {"path": "w.safetensors", "sha256": hashlib.sha256(WEIGHTS).hexdigest()},
    "input": {"channels": 1},
}

PLAIN = st.recursive(
    st.sampled_from([True, False, 0, 1, -1, 2**63, 0.5, 1.0, -0.0, "", "a", "1", "2020-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab1"), inner, max_size=2)
    ),
    max_leaves=4,
)
TABLES = st.dictionaries(st.sampled_from(["a", "b", "é"]), PLAIN, max_size=2)
NUMBER = st.sampled_from([0, 1, 2, -1, 255, 0.0, 0.25, 0.5, -0.5, 1e-30, 1e30])
TEXT = st.sampled_from(["standard", "x", "", "<b>", "=1+1", "\x1b[2J", "café", "a\nb"])
STEPS = st.sampled_from([0, -1, 1, "logits", "", ["a", 0], []])

RIGHT: dict[tuple[str, ...], st.SearchStrategy[Any]] = {
    ("schema_version",): st.just(1),
    ("name",): st.sampled_from(["tiny", "A.b_c+d-1", "9", "a" * 100, "a" * 101, "../evil", "con"]),
    ("dataset",): st.sampled_from(["digits", "cifar10", "d2"]),
    ("num_classes",): st.integers(2, 12),
    ("threat_model",): st.sampled_from(
        ["Linf-8/255", "linf-8_255", " L2 - .5", "1-12.", "2-1/3", "Linf-1", "L1-0.0", "L2-1e-3"]
    ),
    ("defense",): TEXT,
    ("display_name",): TEXT,
    ("architecture", "arguments"): st.sampled_from(
        [
            {"width": 2},
            {"width": 2, "blocks": 1},
            {"width": 3},
            {"colour": 1},
            {"width": "2"},
            {"width": 2.0},
            {"width": [2]},
            {"num_classes": 10},
            {"in_channels": 1},
            {"width": 2**63},
        ]
    )
    | TABLES,
    ("architecture", "name"): st.sampled_from(
        [
            *(*CODE, "digits_resnet ", "DIGITS_RESNET", "resnet", "program", "a.b:c:d", "x:", ":x"),
        ]
    ),
    ("weights", "path"): st.sampled_from(["w.safetensors", "./w.safetensors", "x/../w.safetensors"])
    | st.sampled_from(PLACES),
    ("weights", "sha256"): st.sampled_from(["0" * 64, "F" * 64, "0" * 63]),
    ("weights", "key"): st.sampled_from(["net", "a.b", ""]),
    ("weights", "strip_prefix"): st.sampled_from(["module.", "", "fc."]),
    ("input", "channels"): st.sampled_from([1, 3]),
    ("input", "low"): NUMBER,
    ("input", "high"): NUMBER,
    ("input", "mean"): NUMBER | st.lists(NUMBER, max_size=3),
    ("input", "std"): NUMBER | st.lists(NUMBER, max_size=3),
    ("input", "channel_order"): st.sampled_from(["RGB", "BGR"]),
    ("input", "size"): st.just([8, 8]),
    ("preprocessing", "resize"): st.just(9),
    ("preprocessing", "crop"): st.just(8),
    ("preprocessing", "size"): st.just([8, 9]),
    ("preprocessing", "interpolation"): st.sampled_from(["bicubic", "cubic"]),
    ("forward", "arguments"): TABLES,
    ("forward", "output"): STEPS,
    ("forward", "outputs", "aux"): st.just([1, "a"]),
    ("forward", "outputs_arguments"): TABLES,
    ("attention", "method"): st.sampled_from(["rollout", "none", "grad-cam"]),
    ("attention", "layer"): st.sampled_from(["blocks.0", "nowhere", ""]),
    ("attention", "feature_layer"): st.just("fc"),
    ("provenance", "year"): st.just(2018),
    ("provenance", "notes"): TEXT,
    ("provenance", "recipe"): TABLES,
    ("provenance", "reported", "clean_acc"): NUMBER | st.just(float("nan")),
    ("provenance", "measured", "n"): NUMBER | TEXT,
}
ELSEWHERE = st.sampled_from(
    [
        ("colour",),
        ("weights",),
        ("input",),
        ("architecture",),
        ("weights", "url"),
        ("forward",),
        ("provenance", "measured"),
        ("provenance", "examination"),
        ("attention",),
        ("input", "mean", "x"),
    ]
)


LIBRARIES = st.sampled_from(
    ["timm:hf-hub:a/b", "timm:local-dir:/x", "torchvision:os.system", "torchvision:", "timm:resnet"]
)
"""They take seconds to import: the quick test does without."""


@st.composite
def files(draw: st.DrawFn, libraries: bool = False) -> str:
    """The text of a card: sound, of right fields, or with something wrong."""
    content: dict[str, Any] = copy.deepcopy(SOUND)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.sampled_from(sorted(RIGHT)))
        put(content, place, draw(RIGHT[place]))
    if libraries and draw(st.integers(0, 9)) == 0:
        put(content, ("architecture", "name"), draw(LIBRARIES))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.sampled_from(sorted(RIGHT)) | ELSEWHERE)
        put(content, place, draw(ANYTHING | st.just(GONE)))
    text = toml(content)
    return draw(spoilt(text)) if draw(st.integers(0, 9)) == 0 else text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made: Path = tmp_path_factory.mktemp("cards")
    (made / "w.safetensors").write_bytes(WEIGHTS)
    plant(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        patch.setenv("ROBENCH_CACHE", str(made / "cache"))
        patch.setattr("robench.models.weights_files.fetch_weights", _no_web)
        patch.setattr("pathlib.Path.cwd", lambda: made)
        _look_for("nothing")
        yield made


@pytest.fixture(scope="module")
def libraries(folder: Path) -> None:
    """Imported once, at the first card that names them, they are no stranger's."""
    _look_for("timm:nothing")
    _look_for("torchvision:nothing")


def _look_for(architecture: str) -> None:
    with pytest.raises(RobenchError):
        load_model(_card({**SOUND, "architecture": {"name": architecture}}))


def _no_web(url: str, sha256: str) -> Path:
    """As where there is no network: what is no https address is refused before it is asked for."""
    from robench.errors import CheckpointError
    from robench.models.weights_files import _require_https

    _require_https(url)
    raise CheckpointError("cannot be fetched", where=url)


def _card(content: dict[str, Any]) -> ModelCard:
    return parse_card(toml(content))


KEYS: dict[str, str] = {}
"""Fingerprint → what decides the numbers, of all cards of a process."""


def check(text: str, folder: Path) -> None:
    path = folder / "card.toml"
    path.write_bytes(text.encode())
    content = read(text)
    try:
        if content is None:
            raise described.RefusedError
        wanted = described.card(content)
    except described.RefusedError:
        event("refused")
        for reader in (read_card, load_model):
            with nothing_happens(), pytest.raises(CardError) as raised:
                reader(path)
            is_one_line(raised.value)
            assert str(path) in str(raised.value)
        return
    with nothing_happens():
        card = read_card(path)
    told = card.model_dump(exclude_unset=True)
    told["threat_model"] = str(told["threat_model"])
    assert described.typed(told) == described.typed(wanted)
    again = parse_card(format_card(card))
    assert repr(again) == repr(card)
    assert (again.id, again.fingerprint) == (card.id, card.fingerprint)
    parts = card.model_dump(
        include={"num_classes", "architecture", "input", "forward", "attention"}
    )
    parts["weights"] = card.weights.model_dump(exclude={"path"})
    assert KEYS.setdefault(card.fingerprint, described.typed(parts)) == described.typed(parts)
    _load(path, card, wanted)


def _load(path: Path, card: ModelCard, wanted: dict[str, Any]) -> None:
    sound = (
        wanted["num_classes"] == 10
        and wanted["architecture"]["name"] == "digits_resnet"
        and wanted["architecture"].get("arguments") in ({"width": 2}, {"width": 2, "blocks": 1})
        and described.typed(wanted["architecture"]["arguments"].get("width")) == "int 2"
        and wanted.get("input", {}).get("channels", 3) == 1
        and wanted["weights"]["path"] in ("w.safetensors", "./w.safetensors")
        and {**wanted["weights"], "path": "w.safetensors", "strip_prefix": "", "key": None}
        == {**SOUND["weights"], "strip_prefix": "", "key": None}  # type: ignore[dict-item]
        and wanted["weights"].get("strip_prefix", "") == ""
        and wanted["weights"].get("key") is None
    )
    event("sound" if sound else "described")
    if not sound:
        with contextlib.suppress(RobenchError), nothing_happens(), one_line_errors():
            load_model(path)
        return
    with nothing_happens():
        model = load_model(path)
    if wanted.get("forward", {}).get("arguments") or wanted.get("forward", {}).get("output"):
        return
    spec = wanted.get("input", {})
    low, high = spec.get("low", 0.0), spec.get("high", 1.0)
    mean, std = spec.get("mean", [0.0])[0], spec.get("std", [1.0])[0]
    if max(map(abs, (low, high, mean))) > 255 or std < 0.1:
        return  # float32 rounds otherwise than float64
    with torch.no_grad():
        given = ((low + INPUTS.double() * (high - low) - mean) / std).float()
        told, expected = model(INPUTS), NETWORK(given)
    torch.testing.assert_close(told, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


@settings(max_examples=15, deadline=None)
@given(text=files())
def test_a_card_is_read_as_it_is_written_or_refused_in_one_line(text: str, folder: Path) -> None:
    check(text, folder)


@pytest.mark.usefixtures("libraries")
@campaign(text=files(libraries=True))
def test_of_many_cards_all_are_read_or_refused(text: str, folder: Path) -> None:
    check(text, folder)
