"""All outputs of a model at once, and other ways through it: values by hand, and what they break."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.attacks.losses import margin
from robench.datasets import ArrayDataset
from robench.errors import AttackError, UsageError
from robench.models import wrap_module
from robench.models.architectures.reverse_attention import DigitsResNetRA, reverse_attention
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Outcome, Suite
from robench.stand_ins.auxiliary import Auxiliary
from robench.stand_ins.base import Setting
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")


class Gated(nn.Module):
    """The sign of the inputs' mean less one half is all that decides, and has no gradient here."""

    def forward(self, inputs: Tensor, inside: bool = False) -> Tensor | dict[str, Tensor]:
        score = inputs.flatten(1).mean(dim=1) - 0.5
        inner = torch.stack((-score, score), dim=1)
        chosen = nn.functional.one_hot(inner.argmax(dim=1), 2)
        # A decoy: within each half the slope leads away from the other.
        final = 5.0 * chosen + torch.stack((score, -score), dim=1) * 0.1
        return {"inner": inner} if inside else final


def gated() -> RobenchModel:
    return wrap_module(
        Gated(),
        num_classes=2,
        input={"channels": 1},
        forward={"outputs": {"inner": ["inner"]}, "outputs_arguments": {"inside": True}},
    )


def setting(model: RobenchModel, inputs: Tensor, labels: Tensor) -> Setting:
    return Setting(model, inputs, labels, ThreatModel.parse("Linf-0.1"), seed=0, batch_size=4)


def test_every_output_weighs_by_its_median_margin() -> None:
    model = gated()
    inputs = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    final, inner = model(inputs), model.with_output("inner")(inputs)
    labels = final.argmax(dim=1)
    built = Auxiliary().build(setting(model, inputs, labels))
    expected = final / margin(final, labels).median() + inner / margin(inner, labels).median()
    torch.testing.assert_close(built.logits(inputs), expected)
    assert (built.passes, built.description) == (2, "fp32, the final output, inner")


def test_a_hidden_decision_is_found_where_the_final_output_leads_away() -> None:
    level = torch.linspace(0.3, 0.7, 40)
    inputs = level[:, None, None, None].expand(40, 1, 4, 4).contiguous()
    labels = (level > 0.5).long()
    params = {"steps": 4, "random_start": False}
    entries = [
        AttackSpec(name=name, attack="pgd", params=params, through=through)
        for name, through in (("direct", None), ("auxiliary", "auxiliary"))
    ]
    direct, joined = robench.evaluate(
        Gated(),
        ArrayDataset(inputs, labels, num_classes=2),
        Suite(name="t", attacks=tuple(entries)),
        threat_model="Linf-0.1",
        device="cpu",
        forward={"outputs": {"inner": ["inner"]}, "outputs_arguments": {"inside": True}},
    )
    assert direct.record.count(Outcome.SURVIVED) == 40
    assert joined.record.count(Outcome.BROKEN) == int(((level - 0.5).abs() < 0.1).sum())


def ancra(masked: int = 2) -> tuple[DigitsResNetRA, Tensor]:
    torch.manual_seed(0)
    network = DigitsResNetRA(num_classes=3, width=4, blocks=2, masked=masked).eval()
    return network, torch.rand(5, 1, 8, 8)


def test_a_soft_mask_is_the_mean_of_the_rows() -> None:
    fc = nn.Linear(2, 3)
    maps = torch.rand(4, 2, 3, 3)
    masked, logits = reverse_attention(maps, fc, None, soft=True)
    mean = torch.stack([logits.softmax(dim=1)[:, k, None] * fc.weight[k] for k in range(3)])
    torch.testing.assert_close(masked, maps * mean.sum(dim=0)[:, :, None, None])
    sure = nn.Linear(2, 3)
    sure.bias.data[1] = 1e6  # a class beyond doubt: the soft mask is the hard one
    hard, _ = reverse_attention(maps, sure, None)
    torch.testing.assert_close(reverse_attention(maps, sure, None, soft=True)[0], hard)


@torch.no_grad()
def test_every_class_speaks_under_its_own_mask() -> None:
    network, inputs = ancra()
    final, auxiliary = network(inputs, _eval=True, mask="own")
    for k in range(3):
        labels = torch.full((5,), k)
        forced, inner = network(inputs, labels, _eval=False)
        torch.testing.assert_close(final[:, k], forced[:, k])
        for own, under in zip(auxiliary, inner, strict=True):
            torch.testing.assert_close(own[:, k], under[:, k])


@torch.no_grad()
def test_an_alternative_is_another_way_through_the_same_network() -> None:
    network, inputs = ancra()
    model = wrap_module(
        network,
        num_classes=3,
        input={"channels": 1},
        forward={"outputs": {"a": [1, 0]}, "outputs_arguments": {"_eval": True}},
    )
    assert model.alternatives == ("soft", "own")
    soft = model.with_alternative("soft")
    final, auxiliary = network(inputs, _eval=True, mask="soft")
    assert torch.equal(soft(inputs), final)
    assert torch.equal(soft.further_logits(inputs)["a"], auxiliary[0])
    assert torch.equal(soft.with_output("a")(inputs), auxiliary[0])
    assert torch.equal(model(inputs), network(inputs))  # itself unchanged
    with pytest.raises(UsageError, match="softt"):
        model.with_alternative("softt")
    with pytest.raises(UsageError, match="softt"):
        network(inputs, mask="softt")


def test_models_that_offer_nothing_are_left_out_with_the_reason() -> None:
    plain = wrap_module(nn.Flatten(), num_classes=4, input={"channels": 1})
    here = setting(plain, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    with pytest.raises(AttackError, match="no further outputs"):
        Auxiliary().build(here)
    with pytest.raises(AttackError, match=r"no alternative 'soft' \(it has: none\)"):
        Auxiliary("soft").build(here)
