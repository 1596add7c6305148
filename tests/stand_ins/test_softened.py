"""Hard choices with soft gradients: around a linear network, whose slope is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_models import images, run_search
from torch import Tensor, nn
from torch.nn import functional

from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import LOSSES, Loss
from robench.attacks.pgd import PGD
from robench.errors import AttackError
from robench.models import wrap_module
from robench.stand_ins.base import Setting
from robench.stand_ins.softened import Softened
from robench.threat_models import ThreatModel

LINF = ThreatModel.of("Linf", "0.1")
WEIGHT = torch.where(images(1, (36,), seed=2)[0] < 0.5, -1.0, 1.0)
ROWS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


class Masked(nn.Module):
    """Two classes, apart by Σ wᵢ (xᵢ − ½), and something that hides the slope."""

    def __init__(
        self,
        after: Callable[[Tensor], Tensor] = lambda z: z,
        before: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.after, self.before = after, before

    def forward(self, inputs: Tensor) -> Tensor:
        lead = (self.before(inputs).flatten(1) - 0.5) @ WEIGHT
        return self.after(torch.stack((-lead, lead), dim=1))


def votes(logits: Tensor) -> Tensor:
    said = [functional.one_hot((logits * s).argmax(dim=1), 2) for s in (1.0, 2.0, 3.0)]
    return torch.stack(said).sum(dim=0).float()


def branch(logits: Tensor) -> Tensor:
    first = logits[:, 0] > logits[:, 1]
    return torch.where(first[:, None], ROWS[0], ROWS[1])


def labelled(logits: Tensor) -> Tensor:
    """The label of the nearest of four samples."""
    near = torch.cat((logits, 0.9 * logits), dim=1)
    return functional.one_hot(torch.tensor([0, 1, 0, 1])[near.argmax(dim=1)], 2).to(logits)


MASKS = {
    "one-hot": Masked(lambda z: functional.one_hot(z.argmax(dim=1), 2).float()),
    "row": Masked(lambda z: ROWS[z.argmax(dim=1)]),
    "largest": Masked(lambda z: ROWS[z.max(1).indices]),
    "label": Masked(labelled),
    "votes": Masked(votes),
    "branch": Masked(branch),
    "neither": Masked(lambda z: torch.where(~(z > z.flip(1)), 0.0, 1.0)),
    "truth": Masked(lambda z: 3.0 * (z >= z.flip(1))),
    "detached": Masked(lambda z: z.detach()),
    "rounded": Masked(before=lambda x: (255 * x).round() / 255),
    "bytes": Masked(before=lambda x: (255 * x).to(torch.uint8) / 255),
    "thermometer": Masked(
        before=lambda x: (x[..., None] >= torch.linspace(0, 1, 200)).float().mean(dim=-1)
    ),
}


def softened(network: nn.Module, inputs: Tensor) -> SearchModel:
    model = wrap_module(network, num_classes=2, threat_model=LINF)
    labels = torch.ones(len(inputs), dtype=torch.int64)
    return Softened().build(Setting(model, inputs, labels, LINF, 0, 8))


@pytest.mark.parametrize("name", MASKS)
def test_the_slope_is_the_network_s_and_the_outputs_stay_the_mask_s(name: str) -> None:
    network, inputs = MASKS[name], 0.3 + 0.4 * images(12)
    model = softened(network, inputs)
    labels = torch.ones(12, dtype=torch.int64)
    loss = Loss(LOSSES["margin"], labels, labels)
    plain = SearchModel(network).gradient(inputs, loss)
    found = model.gradient(inputs, loss)
    assert not bool(plain.gradient.any())
    assert torch.equal(found.logits, plain.logits)
    assert torch.equal(model.logits(inputs), plain.logits)
    down = -WEIGHT.view(1, 1, 6, 6).expand_as(inputs)
    assert torch.equal(found.gradient.sign(), down)
    assert model.own_logits


def test_a_search_finds_what_a_gate_hides() -> None:
    inputs = 0.5 + 0.02 * WEIGHT.view(1, 1, 6, 6) * (1 + images(20))
    labels = torch.ones(20, dtype=torch.int64)
    attack = PGD(LINF, steps=5, loss="margin")
    network = MASKS["row"]
    assert not bool(run_search(attack, network, inputs, labels).found.broken.any())
    search = softened(network, inputs)
    assert bool(run_search(attack, network, inputs, labels, search=search).found.broken.all())


def test_a_gradient_is_a_function_of_its_own_point() -> None:
    inputs = 0.3 + 0.4 * images(6)
    labels = torch.ones(6, dtype=torch.int64)
    for name in ("branch", "label", "thermometer"):
        model = softened(MASKS[name], inputs)
        together = model.gradient(inputs, Loss(LOSSES["margin"], labels, labels)).gradient
        alone = [
            model.gradient(one, Loss(LOSSES["margin"], labels[:1], labels[:1])).gradient
            for one in inputs.split(1)
        ]
        assert torch.allclose(torch.cat(alone), together, rtol=1e-4, atol=1e-7)


def test_a_network_without_hard_choices_needs_none() -> None:
    with pytest.raises(AttackError, match="makes no hard choice"):
        softened(Masked(), images(4))


def test_what_leaves_torch_is_let_go() -> None:
    network = Masked(lambda z: z + torch.from_numpy(z.detach().numpy()).round().float())
    assert "detach" in softened(network, images(4)).description
