"""Files in the papers' own formats, loaded through the example cards alone."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.models import buffer_fingerprint, draft_card, list_cards, load_model, read_card
from robench.models.architectures.reverse_attention import ResNetRA, WideResNetRA
from robench.models.architectures.wide_resnet import WideResNet
from robench.models.cards import write_card
from robench.models.wrapper import RobenchModel
from robench.records import ArchitectureSpec, ModelCard

CARDS = Path(__file__).parents[2] / "docs" / "cards"
INPUTS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))

SMALL_WIDE = {"depth": 16, "widen_factor": 1, "stem": 4}


class TrapNetwork(WideResNet):
    """The call of AGKD-BML's published network: a tuple, and training mode unless told."""

    def forward(self, inputs: Tensor, _eval: bool = False) -> Any:
        self.train(_eval is False)
        maps = self.forward_features(inputs)
        pooled = F.avg_pool2d(maps, 8).flatten(1)
        return maps, pooled, self.fc(pooled)


def moved(network: nn.Module, *arguments: Any) -> nn.Module:
    """Give the running statistics values of their own, then evaluate."""
    network.train()
    network(torch.rand(8, 3, 32, 32), *arguments)
    return network.eval()


def install(name: str, weights: Path, arguments: dict[str, Any]) -> ModelCard:
    """The example card beside ``weights``, with its hash and a smaller network."""
    card = read_card(CARDS / name / "card.toml")
    assert weights.name == card.weights.path
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    card = card.model_copy(
        update={
            "weights": card.weights.model_copy(update={"sha256": digest}),
            "architecture": card.architecture.model_copy(update={"arguments": arguments}),
        }
    )
    write_card(card, weights.parent / "card.toml")
    return card


def save_agkd_bml(network: nn.Module, folder: Path) -> Path:
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(
        {"net": state, "acc": 86.25, "epoch": 199},
        folder / "ckpt.t7",
        _use_new_zipfile_serialization=False,
    )
    return folder / "ckpt.t7"


def check_buffers(model: RobenchModel) -> None:
    """Neither plain passes nor gradients may change anything in the network."""
    before = buffer_fingerprint(model)
    model(INPUTS)
    inputs = INPUTS.clone().requires_grad_()
    assert torch.autograd.grad(model(inputs).sum(), inputs)[0].isfinite().all()
    for output in model.outputs:
        model.with_output(output)(INPUTS)
    assert buffer_fingerprint(model) == before
    assert not any(module.training for module in model.modules())


def test_agkd_bml_into_our_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = moved(WideResNet(**SMALL_WIDE))
    install("agkd-bml-wrn-28-10", save_agkd_bml(network, tmp_path), SMALL_WIDE)
    model = load_model(tmp_path)
    torch.testing.assert_close(model(INPUTS), network((INPUTS - 0.5) / 0.5), rtol=0, atol=0)
    check_buffers(model)


def test_agkd_bml_into_the_authors_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = moved(TrapNetwork(**SMALL_WIDE))
    package, module = types.ModuleType("custom_models"), types.ModuleType("custom_models.model")
    module.WideResNet = TrapNetwork  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "custom_models", package)
    monkeypatch.setitem(sys.modules, "custom_models.model", module)
    card = install("agkd-bml-authors-network", save_agkd_bml(network, tmp_path), SMALL_WIDE)
    model = load_model(tmp_path, trust_code=True)
    by_hand = network((INPUTS - 0.5) / 0.5, _eval=True)[2]
    torch.testing.assert_close(model(INPUTS), by_hand, rtol=0, atol=0)
    check_buffers(model)

    # Without the card's argument the trap closes: this is what the check above is there for.
    forward = card.forward.model_copy(update={"arguments": {}})
    write_card(card.model_copy(update={"forward": forward}), tmp_path / "card.toml")
    naive = load_model(tmp_path, trust_code=True)
    before = buffer_fingerprint(naive)
    naive(INPUTS)
    assert buffer_fingerprint(naive) != before


@pytest.mark.parametrize(
    "name, network, arguments",
    [
        ("ancra-resnet18", ResNetRA, {"width": 4}),
        ("ancra-wrn-34-10", WideResNetRA, SMALL_WIDE),
    ],
)
def test_ancra_bare_state_dicts(
    tmp_path: Path, name: str, network: type[nn.Module], arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    theirs = moved(network(**arguments), torch.arange(8), False)
    torch.save(theirs.state_dict(), tmp_path / "model-best.pt")
    install(name, tmp_path / "model-best.pt", arguments)
    model = load_model(tmp_path)
    final, auxiliary = theirs(INPUTS, _eval=True)
    torch.testing.assert_close(model(INPUTS), final, rtol=0, atol=0)
    assert model.outputs == ("aux1", "aux2")
    for output, expected in zip(model.outputs, auxiliary, strict=True):
        torch.testing.assert_close(model.with_output(output)(INPUTS), expected, rtol=0, atol=0)
    check_buffers(model)


def test_the_layers_that_the_cards_name_exist() -> None:
    from robench.models import build_architecture

    cards = [read_card(path) for path in sorted(CARDS.glob("*/card.toml"))]
    assert len(cards) == 4
    for card in cards:
        if card.architecture.names_code:
            continue
        with torch.device("meta"):
            network = build_architecture(card.architecture, card.num_classes, card.input.channels)
        assert card.attention.layer is not None
        network.get_submodule(card.attention.layer)


def test_example_cards_are_not_in_the_zoo() -> None:
    names = {located.card.name for located in list_cards()}
    assert not names & {path.name for path in CARDS.iterdir()}


def test_inspection_sees_the_published_layout(tmp_path: Path) -> None:
    spec = ArchitectureSpec(name="wide_resnet", arguments=SMALL_WIDE)
    card = draft_card(save_agkd_bml(WideResNet(**SMALL_WIDE), tmp_path), spec, num_classes=10)
    assert (card.weights.key, card.weights.strip_prefix) == ("net", "module.")
