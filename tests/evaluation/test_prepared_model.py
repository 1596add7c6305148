"""What all attacks start from: samples, verdicts on clean inputs, and what the search runs on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robench import seeding
from robench.api import evaluate
from robench.datasets import ArrayDataset
from robench.doctor import examine
from robench.errors import ModelError
from robench.evaluation.prepared_model import PreparedModel, Settings, prepare_model
from robench.models import wrap_module
from robench.records import AttackSpec, Suite
from robench.threat_models import ThreatModel

N = 300
THREAT = ThreatModel.of("Linf", "0.01")
PGD = AttackSpec(name="pgd", attack="pgd", params={"steps": 5})


class Counting(ArrayDataset):
    """Notes which samples are loaded."""

    def batch(self, rows: Sequence[int] | Tensor) -> Tensor:
        self.loaded = [*getattr(self, "loaded", []), *torch.as_tensor(rows).tolist()]
        return super().batch(rows)


class Threshold(nn.Module):
    """Class 1 where the mean is above a half; raises for the black, has no logits for the white."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, inputs: Tensor) -> Tensor:
        means = inputs.flatten(1).mean(dim=1)
        if bool((means == 0).any()):
            raise ValueError("too dark")
        means = torch.where(means == 1, torch.nan, means)
        return self.scale * torch.stack((0.5 - means, means - 0.5), dim=1)


def samples() -> Counting:
    """Grey images; the third is black, the fifth white, every seventh has the wrong label."""
    means = torch.linspace(0.05, 0.95, N)
    labels = (means > 0.5).long()
    means[2], means[4] = 0.0, 1.0
    labels[::7] = 1 - labels[::7]
    return Counting(means.view(N, 1, 1, 1).expand(N, 1, 4, 4).contiguous(), labels, num_classes=2)


def prepared(data: Counting, **settings: object) -> PreparedModel:
    model = wrap_module(Threshold(), num_classes=2, input={"channels": 1})
    chosen = dataclasses.replace(Settings(precision="fp32", workers=1), **settings)  # type: ignore[arg-type]
    return prepare_model(model, data, THREAT, chosen, [PGD])


@pytest.mark.parametrize("batch_size", [7, None])
def test_rows_are_the_correctly_classified_and_failures_are_kept(batch_size: int | None) -> None:
    data = samples()
    found = prepared(data, batch_size=batch_size)
    wrong = set(range(0, N, 7)) | {2, 4}
    assert found.rows.tolist() == [row for row in range(N) if row not in wrong]
    assert len(found) == N - len(wrong)
    assert "too dark" in found.errors[2]
    assert "non-finite" in found.errors[4]
    assert set(found.errors) == {2, 4}
    assert int(found.predictions[0]) == 1 - int(data.labels[0])
    # At the mean m the margin is 40·|m − ½|; below 0 for a wrong label.
    assert float(found.margins[1]) == pytest.approx(40 * (0.45 - 0.9 / (N - 1)), rel=1e-5)
    assert float(found.margins[0]) == pytest.approx(-40 * 0.45, rel=1e-5)


def test_positions_among_the_rows_are_loaded_with_their_keys() -> None:
    data = samples()
    found = prepared(data, seed=3)
    here = torch.tensor([1, 0, 5])
    loaded = found.load(here)
    rows = found.rows[here]
    assert torch.equal(loaded.inputs, data.batch(rows))
    assert torch.equal(loaded.labels, data.labels[rows])
    assert torch.equal(loaded.clean_logits.argmax(dim=1), loaded.labels)
    keys = seeding.sample_keys(3, data.sample_ids)[rows]
    assert torch.equal(loaded.keys, keys)


@pytest.mark.parametrize("batch_size", [16, None])
def test_every_clean_input_is_loaded_once(batch_size: int | None) -> None:
    data = samples()
    prepared(data, batch_size=batch_size)
    assert sorted(data.loaded) == list(range(N))


def test_a_model_that_answers_nothing_is_refused() -> None:
    dark = Counting(torch.zeros(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64), num_classes=2)
    with pytest.raises(ModelError, match="no clean input can be evaluated: ValueError: too dark"):
        prepared(dark)


class Noisy(Threshold):
    """Draws at every call, from the one stream of the process."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + 0.1 * torch.randn(len(inputs), 2)


def test_passes_that_draw_at_random_do_not_overlap() -> None:
    model = wrap_module(Noisy(), num_classes=2, input={"channels": 1})
    settings = Settings(precision="fp32", workers=2)
    found = prepare_model(model, samples(), THREAT, settings, [PGD])
    assert "randomised" in {flag.name for flag in found.flags}
    assert found.workers == 1


@pytest.mark.parametrize("network, times", [(Threshold(), 1), (Noisy(), 2)])
def test_the_doctor_comes_once_for_all_radii(
    network: nn.Module, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But each time to a model that draws: its draws are part of the run at one radius."""
    asked = []

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        return examine(*arguments, **options)

    monkeypatch.setattr("robench.evaluation.prepared_model.examine", counted)
    suite = Suite(name="one", attacks=(PGD,))
    common: dict[str, Any] = {"norm": "Linf", "device": "cpu", "workers": 1, "precision": "fp32"}
    few = samples().subset(20)
    both = evaluate(network, few, suite, eps="0.01,0.02", **common)
    assert len(asked) == times
    alone = [evaluate(network, few, suite, eps=eps, **common)[0] for eps in ("0.01", "0.02")]
    for one, other in zip(both, alone, strict=True):
        assert one.same_outcomes(other.samples)
        assert one.record.flags == other.record.flags
