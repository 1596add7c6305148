"""bfloat16 in training: where it computes, and that nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.datasets import ArrayDataset, hold_out
from robench.defenses import RECIPES, Context, TrainingSettings, TrainingSplits, resolve, train
from robench.defenses.computation import BFloat16Network, as_computed, chosen_precision
from robench.defenses.training_data import TrainingData
from robench.models import load_model, read_card
from robench.models.architectures.resnet import ResNet
from robench.models.architectures.reverse_attention import ResNetRA
from robench.records import ArchitectureSpec
from robench.threat_models import ThreatModel

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"width": 4, "stages": (1, 1, 1, 1)}


def network(kind: type[nn.Module] = ResNet, seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(num_classes=3, **SMALL)


def pictures(n: int = 48) -> ArrayDataset:
    """Noisy images whose brightest third says the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    inputs = 0.4 * torch.rand(n, 3, 12, 12, generator=generator)
    for i, label in enumerate(labels.tolist()):
        inputs[i, :, 4 * label : 4 * label + 4] += 0.5
    return ArrayDataset(inputs, labels, name="thirds", split="train", num_classes=3)


def test_auto_is_float32_on_a_cpu() -> None:
    assert chosen_precision(CPU, "auto") == "fp32"
    bare = network()
    assert as_computed(bare, CPU, "auto") is bare


def test_the_layout_follows_the_precision_and_values_stay() -> None:
    before = {name: value.clone() for name, value in network().state_dict().items()}
    for precision, last in (("fp32", False), ("bf16", True)):
        moved = network()
        as_computed(moved, CPU, precision)  # type: ignore[arg-type]
        assert moved.conv1.weight.is_contiguous(memory_format=torch.channels_last) is last
        assert all(torch.equal(value, before[name]) for name, value in moved.state_dict().items())


def test_the_network_computes_in_bfloat16_and_returns_float32() -> None:
    bare = network().eval()
    lowered = BFloat16Network(bare, "cpu")
    inside: list[torch.dtype] = []
    bare.layer3.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    inputs = pictures().batch(range(8))
    with torch.no_grad():
        maps, logits = lowered.forward_features(inputs), lowered(inputs)
        again, exact = lowered.forward_head(maps), bare(inputs)
    assert inside == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert (maps.dtype, logits.dtype) == (torch.float32, torch.float32)
    assert torch.equal(again, logits)
    # Eight bits of precision over eleven layers: off by something, and by little.
    assert 0 < float((logits - exact).abs().max()) < 0.05 * float(exact.abs().max())
    assert {id(p) for p in lowered.parameters()} == {id(p) for p in bare.parameters()}


def test_every_output_of_a_network_is_raised() -> None:
    lowered = BFloat16Network(network(ResNetRA).eval(), "cpu")
    final, auxiliary = lowered(pictures().batch(range(4)), None, _eval=True)
    assert final.dtype == torch.float32
    assert isinstance(auxiliary, list)
    assert [part.dtype for part in auxiliary] == [torch.float32]


def test_a_network_without_features_offers_none() -> None:
    lowered = BFloat16Network(nn.Linear(3, 2), "cpu")
    assert not hasattr(lowered, "forward_features")
    assert lowered(torch.rand(4, 3)).dtype == torch.float32


def test_a_pass_without_gradients_leaves_none_out_of_the_next() -> None:
    """torch keeps casts of weights for one context; one made without gradients has none."""
    lowered = BFloat16Network(network().train(), "cpu")
    inputs, labels = pictures().batch(range(12)), pictures().labels[:12]
    with torch.no_grad():
        lowered(inputs)
    F.cross_entropy(lowered(inputs), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lowered.parameters())


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_has_float32_terms_and_nearly_the_float32_gradient(name: str) -> None:
    kind = RECIPES[name]
    # One step: signs of tiny slopes differ between precisions, and attacks then part ways.
    changes = {"attack_steps": 1} if "attack_steps" in kind.model_fields else {}
    recipe = kind.model_validate(changes)
    architecture = ResNetRA if name == "ancra" else ResNet
    settings = TrainingSettings.model_validate({"batch_size": 24})
    data = TrainingData(pictures(), settings, seed=0, device=CPU)
    found: dict[str, Tensor] = {}
    for precision in ("fp32", "bf16"):
        bare = network(architecture).train()
        teacher = as_computed(network(seed=2), CPU, precision).eval()  # type: ignore[arg-type]
        context = Context(
            as_computed(bare, CPU, precision),  # type: ignore[arg-type]
            ThreatModel.of("Linf", "8/255"),
            3,
            data,
            teacher if kind.needs_teacher else None,
        )
        terms = recipe.terms(context, next(data.batches(0)))
        assert {term.dtype for term in terms.values()} == {torch.float32}
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in bare.parameters())
        found[precision] = torch.cat([p.grad.flatten() for p in bare.parameters()])
    assert float(F.cosine_similarity(found["fp32"], found["bf16"], dim=0)) > 0.9


@pytest.mark.slow
def test_a_run_in_bfloat16_learns_and_repeats(tmp_path: Path) -> None:
    parts = TrainingSplits(*hold_out(pictures(120), 24))
    cards = [
        train(
            resolve(
                "pgd-at",
                parts,
                architecture=ArchitectureSpec(name="resnet18", arguments=SMALL),
                folder=tmp_path / folder,
                device="cpu",
                settings={
                    "epochs": 4,
                    "batch_size": 16,
                    "attack_steps": 1,
                    "validation_steps": 1,
                    "validate_every": 4,
                    "precision": "bf16",
                },
            ),
            progress=False,
        )
        for folder in ("a", "b")
    ]
    card = read_card(cards[0])
    assert card.provenance.recipe["precision"] == "bf16"
    assert card.provenance.validation["clean_acc"] > 90
    # The layout is the run's own business: the file has plain float32 tensors.
    assert load_model(cards[0])(parts.validation.batch([0])).dtype == torch.float32
    assert card.weights.sha256 == read_card(cards[1]).weights.sha256
