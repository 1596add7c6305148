"""What the suite ``strong`` is made of, on logits that are multiplied or shifted: the same finds."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from attack_models import digits_data, digits_network, run_search
from combinations import one_at_a_time
from torch import Tensor, nn

from robench.attacks.apgd import APGD
from robench.attacks.fab import FAB
from robench.attacks.probability_margin import PMA
from robench.threat_models import Norm, ThreatModel

N = 30
EPS: dict[Norm, str] = {"Linf": "0.1", "L2": "0.5"}


class Affine(nn.Module):
    """The same classifier with other logits."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.network = digits_network(eps=0.1)
        self.scale, self.offset = scale, offset

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.network(inputs) * self.scale + self.offset
        return out


@cache
def _broken(norm: Norm, scale: float = 1.0, offset: float = 0.0) -> dict[str, Tensor]:
    """bool (n,) by attack: of the samples that are classified correctly."""
    _, _, inputs, labels = digits_data()
    inputs, labels = inputs[:N], labels[:N]
    correct = digits_network(eps=0.1)(inputs).argmax(dim=1) == labels
    threat = ThreatModel.of(norm, EPS[norm])
    targeted = {"targets": 3, "target_order": "malt"}
    attacks = {
        "pma": PMA(threat, steps=10),
        "apgd-t": APGD(threat, steps=10, loss="dlr-targeted", **targeted),
        "fab-t": FAB(threat, steps=5, **targeted),
    }
    model = Affine(scale, offset)
    return {
        name: run_search(attack, model, inputs[correct], labels[correct]).found.broken
        for name, attack in attacks.items()
    }


@pytest.mark.parametrize(
    ("form", "norm"), one_at_a_time([(1e6, 0.0), (1e3, 0.0), (1.0, 1e6)], ["Linf", "L2"])
)
def test_no_form_of_the_logits_hides_a_sample(norm: Norm, form: tuple[float, float]) -> None:
    """All attacks together may differ by a sample: a million costs a margin its digits."""
    scale, offset = form
    plain, other = _broken(norm), _broken(norm, scale, offset)
    together = torch.stack(list(plain.values())).any(dim=0)
    assert 0.2 < float(together.float().mean()) < 0.95
    assert abs(int(torch.stack(list(other.values())).any(dim=0).sum()) - int(together.sum())) <= 1
    if scale > 1:
        for name, broken in plain.items():
            assert abs(int(other[name].sum()) - int(broken.sum())) <= 1, name
