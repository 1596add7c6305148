"""Every loss term by term against numbers computed by hand in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robench import seeding
from robench.datasets import ArrayDataset
from robench.defenses import (
    RECIPES,
    AdversarialRecipe,
    Batch,
    Context,
    Recipe,
    TrainingSettings,
)
from robench.defenses.inner_maximisers import Objective, kl_divergence
from robench.defenses.recipes.aerp import (
    Aerp,
    attended,
    class_attention,
    probability_gap,
    upsampled,
)
from robench.defenses.recipes.agkd_bml import (
    AgkdBml,
    angular_distance,
    attention_map,
    confusing_classes,
    smoothed_cross_entropy,
)
from robench.defenses.recipes.ancra import Ancra, negative_contrast, other_classes
from robench.defenses.recipes.cross_entropy import PgdAt, Standard
from robench.defenses.recipes.divergence import Mart, Trades, boosted_margin, weighted_kl
from robench.defenses.recipes.interval import Ibp
from robench.defenses.training_data import TrainingData
from robench.errors import ModelError, TrainingError, UsageError
from robench.models.architectures.resnet import DigitsResNet
from robench.models.architectures.reverse_attention import DigitsResNetRA
from robench.models.architectures.small_cnn import SmallCNN
from robench.threat_models import ThreatModel

THREAT = ThreatModel.of("Linf", "0.1")
CLASSES = 3


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.log(softmax(z)[np.arange(len(y)), y])


def kl(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    p, q = softmax(z), softmax(w)
    return (p * np.log(p / q)).sum(axis=1)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(network: nn.Module, teacher: nn.Module | None = None) -> tuple[Context, Batch]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(12, 1, 6, 6, generator=generator)
    dataset = ArrayDataset(inputs, torch.arange(12) % CLASSES, num_classes=CLASSES)
    data = TrainingData(
        dataset,
        TrainingSettings.model_validate({"batch_size": 6}),
        seed=0,
        device=torch.device("cpu"),
    )
    batch = next(data.batches(0))
    return Context(network, THREAT, CLASSES, data, teacher), batch


def network(kind: Callable[..., nn.Module] = DigitsResNet, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        built = kind(num_classes=CLASSES, in_channels=1, width=4, **arguments)
    with torch.no_grad():
        # Decided predictions: differences of nearly equal ones would drown in rounding.
        built.fc.weight.mul_(30)
    return built.train()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


# --- parts ---------------------------------------------------------------------------------


def test_kl_divergence() -> None:
    z, w = numbers(5, 4), numbers(5, 4, seed=1)
    assert kl_divergence(z, w).numpy() == pytest.approx(kl(z.numpy(), w.numpy()))
    assert kl_divergence(z, z).abs().max() < 1e-12


def test_boosted_margin_and_weighted_kl() -> None:
    z, w, y = numbers(5, 4), numbers(5, 4, seed=1), torch.tensor([0, 1, 2, 3, 0])
    p = softmax(w.numpy())
    wrong = np.where(np.eye(4)[y.numpy()] == 1, -1, p).max(axis=1)
    # The reference adds 1e-4 inside the logarithm.
    assert boosted_margin(w, y).numpy() == pytest.approx(-np.log(1.0001 - wrong), rel=1e-5)
    true = softmax(z.numpy())[np.arange(5), y.numpy()]
    expected = kl(z.numpy(), w.numpy()) * (1 - true)
    assert weighted_kl(z, w, y).numpy() == pytest.approx(expected)


def test_a_certain_error_has_a_finite_margin() -> None:
    logits = torch.tensor([[0.0, 200.0]])
    assert float(boosted_margin(logits, torch.tensor([0]))) == pytest.approx(
        -np.log(1e-4), rel=1e-3
    )


def test_smoothed_cross_entropy_puts_half_off_the_true_class() -> None:
    z, y = numbers(5, 4), torch.tensor([0, 1, 2, 3, 0])
    target = np.full((5, 4), 0.5 / 3)
    target[np.arange(5), y] = 0.5
    expected = -(target * np.log(softmax(z.numpy()))).sum(axis=1).mean()
    assert float(smoothed_cross_entropy(z, y, 0.5)) == pytest.approx(expected)


def test_smoothing_of_every_mass_below_one() -> None:
    z, y = numbers(3, 2), torch.tensor([0, 1, 1])
    p = np.log(softmax(z.numpy()))
    for mass in (0.0, 0.25, 0.5, 0.9):
        target = np.full((3, 2), mass)
        target[np.arange(3), y] = 1 - mass
        expected = -(target * p).sum(axis=1).mean()
        assert float(smoothed_cross_entropy(z, y, mass)) == pytest.approx(expected)


def test_angular_distance() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[2.0, 0.0], [0.0, -5.0], [-3.0, -4.0]])
    assert angular_distance(a, b).tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_attention_map_is_min_max_of_the_channel_sum() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 3.0]]]])
    assert attention_map(maps)[0].flatten().tolist() == pytest.approx([1 / 6, 4 / 6, 0, 1])
    assert attention_map(torch.ones(1, 2, 2, 2)).abs().max() == 0, "a constant map, not NaN"


def test_confusing_classes_skip_the_label() -> None:
    logits = torch.tensor([[5.0, 1.0, 2.0], [0.0, 9.0, -1.0], [1.0, 2.0, 0.0]])
    assert confusing_classes(logits, torch.tensor([0, 1, 0])).tolist() == [2, 0, 1]


def test_negative_contrast() -> None:
    anchor = torch.tensor([[0.9, 0.1], [0.2, 0.8]], requires_grad=True)
    negative = torch.tensor([[0.4, 0.6], [0.5, 0.5 + 1e-6]], requires_grad=True)
    value = negative_contrast(anchor, negative, 1.0)
    assert value.tolist() == pytest.approx([0.0, np.sqrt(0.8 * 0.5)], rel=1e-5)
    value.sum().backward()
    assert anchor.grad is None, "only the negative moves"
    assert negative.grad is not None
    assert negative.grad[1, 1].item() == pytest.approx(0.5 * np.sqrt(0.8 / 0.5), rel=1e-5)
    both = negative_contrast(anchor, negative, 0.25)
    assert both.tolist() == pytest.approx(value.tolist())
    both.sum().backward()
    assert anchor.grad is not None
    assert anchor.grad[1, 1].item() == pytest.approx(0.75 * 0.5 * np.sqrt(0.5 / 0.8), rel=1e-5)


def test_other_classes_are_other_and_uniform() -> None:
    labels = torch.arange(30_000) % 5
    others = other_classes(labels, seeding.sample_keys(0, [str(i) for i in range(30_000)]), 5)
    assert (others != labels).all()
    counts = torch.stack([torch.bincount(others[labels == c], minlength=5) for c in range(5)])
    rest = counts[~torch.eye(5, dtype=torch.bool)].float()
    # 6,000 draws over 4 classes: sd 34; five of them allowed.
    assert (rest - 1500).abs().max() < 170
    assert other_classes(torch.tensor([0, 1]), torch.arange(2), 2).tolist() == [1, 0]


def test_class_attention_of_a_linear_head_by_hand() -> None:
    maps = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    weight = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]])
    logits = maps.mean(dim=(2, 3)) @ weight.T
    attention = class_attention(maps, logits, torch.tensor([0, 1]))
    for row, label in enumerate((0, 1)):
        w = weight[label] / 4  # the gradient of a mean over four cells, constant in space
        alpha = w / w.square().mean().sqrt()
        expected = (alpha[:, None, None] * maps[row]).sum(0)
        assert torch.allclose(attention[row], expected, atol=1e-5)


def test_class_attention_is_differentiable_and_survives_a_zero_gradient() -> None:
    maps = torch.rand(1, 3, 2, 2).requires_grad_(True)
    head = nn.Linear(3, 2)
    logits = head(maps.mean(dim=(2, 3)))
    class_attention(maps, logits, torch.tensor([1])).sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad[1].abs().sum() > 0, "the weights appear in the attention itself"
    nn.init.zeros_(head.weight)
    head.zero_grad()
    class_attention(maps, head(maps.mean(dim=(2, 3))), torch.tensor([1])).sum().backward()
    assert torch.isfinite(head.weight.grad).all()


def test_upsampled_attended_and_gap() -> None:
    attention = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    same = upsampled(attention, torch.Size((2, 2)))
    assert same.flatten().tolist() == pytest.approx(softmax(np.array([[0.0, 1, 2, 3]]))[0])
    larger = upsampled(attention, torch.Size((8, 6)))
    assert larger.shape == (1, 8, 6)
    assert float(larger.sum()) == pytest.approx(1, abs=1e-5)
    assert attended(attention).flatten().tolist() == [False, False, True, True]
    z, w = numbers(4, 3), numbers(4, 3, seed=1)
    expected = ((softmax(z.numpy()) - softmax(w.numpy())) ** 2).sum(axis=1)
    assert probability_gap(z, w).numpy() == pytest.approx(expected)


# --- whole losses --------------------------------------------------------------------------


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


class InnerAttack:
    """Stands in for the inner attack: moves inputs by fixed amounts, keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *moves: float) -> None:
        self.asked: list[tuple[Objective, Tensor, Tensor]] = []

        def maximise(
            recipe: AdversarialRecipe,
            context: Context,
            objective: Objective,
            inputs: Tensor,
            start: Tensor,
        ) -> Tensor:
            move = moves[len(self.asked) % len(moves)]
            self.asked.append((objective, inputs, start))
            return (inputs + move).clamp(0, 1)

        monkeypatch.setattr(AdversarialRecipe, "maximise", maximise)


def test_the_inner_attack_raises_its_objective_inside_the_ball() -> None:
    model = network()
    context, batch = made(model)

    def brightness(points: Tensor) -> Tensor:
        assert not model.training
        return points.mean(dim=(1, 2, 3))

    adv_inputs = PgdAt().maximise(context, brightness, batch.inputs, batch.inputs)
    # The optimum in closed form: every pixel brighter by ε, and none above 1.
    assert torch.allclose(adv_inputs, (batch.inputs + 0.1).clamp(0, 1), atol=1e-6)
    assert model.training


def test_standard() -> None:
    model = network().eval()
    context, batch = made(model)
    terms = Standard().terms(context, batch)
    expected = cross_entropy(array(model(batch.inputs)), batch.labels.numpy()).mean()
    assert float(terms["clean"].detach()) == pytest.approx(expected, rel=1e-4)


def test_pgd_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().eval()
    context, batch = made(model)
    attack = InnerAttack(monkeypatch, 0.1)
    terms = PgdAt().terms(context, batch)
    z = array(model((batch.inputs + 0.1).clamp(0, 1)))
    losses = cross_entropy(z, batch.labels.numpy())
    assert set(terms) == {"adversarial"}
    assert float(terms["adversarial"].detach()) == pytest.approx(losses.mean(), rel=1e-4)

    ((objective, inputs, start),) = attack.asked
    assert torch.equal(inputs, batch.inputs)
    assert array(objective((inputs + 0.1).clamp(0, 1))) == pytest.approx(losses, rel=1e-3)
    assert 0.05 < float((start - inputs).abs().max()) <= 0.1 + 1e-6, "anywhere in the ball"


def test_ibp_by_hand() -> None:
    """One linear layer, two classes: the lowest margin is the margin less ε times Σ|w_y − w_j|."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    context, batch = made(model)
    context = replace(context, num_classes=2)
    batch = replace(batch, inputs=0.5 + 0.2 * (batch.inputs - 0.5), labels=batch.labels % 2)
    z, y = array(model(batch.inputs)), batch.labels.numpy()
    clean = cross_entropy(z, y).mean()
    slope = array(model[1].weight[0] - model[1].weight[1])
    lowest = (2 * (y == 0) - 1) * (z[:, 0] - z[:, 1]) - THREAT.radius * np.abs(slope).sum()
    verified = np.log1p(np.exp(-lowest)).mean()
    terms = Ibp(verified_weight=0.25).terms(context, batch)
    assert float(terms["clean"].detach()) == pytest.approx(0.75 * clean, rel=1e-5)
    assert float(terms["verified"].detach()) == pytest.approx(0.25 * verified, rel=1e-5)
    # The next step's bounds are of the weights that this step has left.
    with torch.no_grad():
        model[1].weight.mul_(2)
    again = Ibp(verified_weight=0.25).terms(context, batch)
    assert float(again["verified"].detach()) > 0.25 * verified + 0.01


def test_ibp_refuses_what_has_no_bounds() -> None:
    inputs = torch.rand(2, 1, 6, 6)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Tanh())
    with pytest.raises(ModelError, match="no bounds for the operation tanh"):
        Ibp().check(smooth, inputs, 3)
    Ibp().check(SmallCNN(num_classes=3, side=6), inputs, 3)


def test_trades(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().eval()
    context, batch = made(model)
    attack = InnerAttack(monkeypatch, 0.1)
    adv = (batch.inputs + 0.1).clamp(0, 1)
    recipe = Trades()
    terms = recipe.terms(context, batch)
    z, w = array(model(batch.inputs)), array(model(adv))
    assert float(terms["clean"].detach()) == pytest.approx(
        cross_entropy(z, batch.labels.numpy()).mean(), rel=1e-4
    )
    assert float(terms["kl"].detach()) == pytest.approx(6 * kl(z, w).mean(), rel=1e-3)
    assert recipe.attack_step_size * 8 / 255 == pytest.approx(0.007)

    ((objective, inputs, start),) = attack.asked
    assert array(objective(adv)) == pytest.approx(kl(z, w), rel=1e-2, abs=1e-6)
    # 216 draws of N(0, 0.001): their standard deviation within 5 of its own.
    assert float((start - inputs).std()) == pytest.approx(0.001, rel=0.25)


def test_mart_adds_its_three_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().eval()
    context, batch = made(model)
    attack = InnerAttack(monkeypatch, 0.1)
    adv = (batch.inputs + 0.1).clamp(0, 1)
    z, w, y = array(model(batch.inputs)), array(model(adv)), batch.labels.numpy()
    terms = Mart().terms(context, batch)
    p = softmax(w)
    wrong = np.where(np.eye(CLASSES)[y] == 1, -1, p).max(axis=1)
    losses = cross_entropy(w, y)
    assert float(terms["adversarial"].detach()) == pytest.approx(losses.mean(), rel=1e-4)
    assert float(terms["margin"].detach()) == pytest.approx(
        -np.log(1.0001 - wrong).mean(), rel=1e-4
    )
    weight = 1 - softmax(z)[np.arange(len(y)), y]
    assert float(terms["kl"].detach()) == pytest.approx(6 * (kl(z, w) * weight).mean(), rel=1e-3)
    ((objective, inputs, start),) = attack.asked
    assert array(objective(adv)) == pytest.approx(losses, rel=1e-3)
    assert float((start - inputs).std()) == pytest.approx(0.001, rel=0.25)


def test_aerp_adds_its_three_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().eval()  # so that calling it twice gives the same
    context, batch = made(model)
    attack = InnerAttack(monkeypatch, 0.1)
    fixed = (batch.inputs + 0.1).clamp(0, 1)
    y = batch.labels.numpy()
    terms = Aerp().terms(context, batch)
    supervised, gap, maps = 0.0, 0.0, []
    for points in (batch.inputs, fixed):
        logits = array(model(points))
        features = array(model.forward_features(points))
        weights = array(model.fc.weight)[y]
        weights = weights / np.sqrt((weights**2).mean(axis=1, keepdims=True))
        cam = (weights[:, :, None, None] * features).sum(axis=1)
        attention = softmax(cam.reshape(len(y), -1)).reshape(cam.shape)
        hidden = array(points)[:, 0] * (attention < attention.mean(axis=(1, 2), keepdims=True))
        q = softmax(array(model(torch.from_numpy(hidden[:, None]).float())))
        supervised += cross_entropy(logits, y).mean()
        gap += ((softmax(logits) - q) ** 2).sum(axis=1).mean()
        maps.append(attention)
    moved = ((maps[0] - maps[1]) ** 2).sum(axis=(1, 2)).mean()
    assert float(terms["classification"].detach()) == pytest.approx(8 * supervised, rel=1e-4)
    assert float(terms["rectification"].detach()) == pytest.approx(-4 * gap, rel=1e-3)
    assert float(terms["preservation"].detach()) == pytest.approx(moved, rel=1e-2, abs=1e-9)
    ((objective, _, _),) = attack.asked
    assert array(objective(fixed)) == pytest.approx(cross_entropy(array(model(fixed)), y), rel=1e-3)


def test_aerp_s_own_attack_is_one_step_towards_the_least_likely() -> None:
    model = network()
    context, batch = made(model)
    recipe = Aerp(attack="least-likely")
    adv_inputs = recipe.attacked(context, batch)
    inside = (batch.inputs > 0.1) & (batch.inputs < 0.9)
    size = (adv_inputs - batch.inputs).abs()
    # One full step: on the surface of the ball wherever the gradient is not exactly zero.
    on_surface = torch.isclose(size, torch.tensor(0.1), atol=1e-6) | (size == 0)
    assert on_surface[inside].all()
    model.eval()
    before, after = model(batch.inputs).softmax(1), model(adv_inputs).softmax(1)
    unlikely = before.argmin(1, keepdim=True)
    assert (after.gather(1, unlikely) >= before.gather(1, unlikely)).float().mean() > 0.8


def test_agkd_bml_adds_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher = network().eval(), network(blocks=2).eval()
    context, batch = made(model, teacher)
    attack = InnerAttack(monkeypatch, 0.05)
    terms = AgkdBml().terms(context, batch)
    y = batch.labels
    confusing = confusing_classes(model(batch.inputs), y)
    others = context.data.draw(confusing, batch.keys)
    # x1 is attacked towards the confusing class, x2 towards the label of x1.
    for (objective, inputs, _), target in zip(attack.asked, (confusing, y), strict=True):
        expected = -cross_entropy(array(model(inputs)), target.numpy())
        assert array(objective(inputs)) == pytest.approx(expected, rel=1e-3)
    assert torch.equal(attack.asked[1][1], others)
    x, x_adv, o_adv = (batch.inputs, (batch.inputs + 0.05).clamp(0, 1), (others + 0.05).clamp(0, 1))

    def look(module: nn.Module, points: Tensor) -> np.ndarray:
        total = array(module.forward_features(points)).sum(axis=1).reshape(len(points), -1)
        total = total - total.min(axis=1, keepdims=True)
        return total / total.max(axis=1, keepdims=True)

    gaze = np.abs(look(model, x_adv) - look(teacher, x)).mean()
    gaze += np.abs(look(model, o_adv) - look(teacher, others)).mean()
    assert float(terms["distillation"].detach()) == pytest.approx(gaze, rel=1e-4)

    a, p, n = (array(model.forward_features(v)).mean(axis=(2, 3)) for v in (x_adv, x, o_adv))

    def cosine(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.abs((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1))

    pull = np.maximum(0, 0.03 + (1 - cosine(a, p)) - (1 - cosine(a, n))).mean()
    pull += 0.001 * sum((v**2).mean() for v in (a, p, n))
    assert float(terms["triplet"].detach()) == pytest.approx(2 * pull, rel=1e-3)
    w, z = model(x_adv), model(x)
    expected = smoothed_cross_entropy(w, y, 0.5)
    assert torch.allclose(terms["smoothed"], expected)
    assert torch.allclose(terms["margin"], boosted_margin(w, y).mean())
    assert torch.allclose(terms["kl"], 6 * weighted_kl(z, w, y).mean(), rtol=1e-4)


@pytest.mark.parametrize("form", ["pgd", "trades", "mart"])
def test_ancra_adds_its_terms_over_heads(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(DigitsResNetRA, blocks=2, masked=2).eval()
    context, batch = made(model)

    InnerAttack(monkeypatch, 0.1, -0.1)
    recipe = Ancra.model_validate({"form": form})
    terms = recipe.terms(context, batch)
    labels = batch.labels
    wrong = other_classes(labels, batch.keys, CLASSES)
    negatives = context.data.draw(wrong, batch.keys)

    def heads(points: Tensor, y: Tensor) -> list[np.ndarray]:
        final, auxiliary = model(points, y, _eval=False)
        assert len(auxiliary) == 2
        return [array(final), *(array(head) for head in auxiliary)]

    z = heads(batch.inputs, labels)
    w = heads((batch.inputs + 0.1).clamp(0, 1), labels)
    n = heads((negatives - 0.1).clamp(0, 1), wrong)
    y = labels.numpy()

    def over_heads(values: list[float]) -> float:
        return values[0] + float(np.mean(values[1:]))

    def margin(v: np.ndarray) -> float:
        masked = np.where(np.eye(CLASSES)[y] == 1, -1, softmax(v)).max(axis=1)
        return float(-np.log(1.0001 - masked).mean())

    def weighted(a: np.ndarray, b: np.ndarray) -> float:
        return float((kl(a, b) * (1 - softmax(a)[np.arange(len(y)), y])).mean())

    def contrast(a: np.ndarray, b: np.ndarray) -> float:
        p, q = softmax(a), softmax(b)
        same = p.argmax(1) == q.argmax(1)
        return float((np.sqrt(p.max(1) * q.max(1)) * same).mean())

    expected = {
        "pgd": {"adversarial": [cross_entropy(v, y).mean() for v in w]},
        "trades": {
            "clean": [cross_entropy(v, y).mean() for v in z],
            "kl": [6 * kl(a, b).mean() for a, b in zip(z, w, strict=True)],
        },
        "mart": {
            "adversarial": [cross_entropy(v, y).mean() for v in w],
            "margin": [margin(v) for v in w],
            "kl": [6 * weighted(a, b) for a, b in zip(z, w, strict=True)],
        },
    }[form]
    expected["contrast"] = [3 * contrast(a, b) for a, b in zip(z, n, strict=True)]
    assert set(terms) == set(expected)
    for name, values in expected.items():
        assert float(terms[name].detach()) == pytest.approx(over_heads(values), rel=1e-3), name


def test_ancra_s_attack_raises_its_objective_inside_the_ball() -> None:
    model = network(DigitsResNetRA).eval()
    context, batch = made(model)
    recipe = Ancra()

    def objective(points: Tensor, labels: Tensor) -> Tensor:
        final, (auxiliary,) = model(points, None, _eval=True)
        ce = nn.functional.cross_entropy
        return ce(final, labels) + 2 * ce(auxiliary, labels)

    labels = batch.labels
    away = recipe.attacked(context, batch.inputs, labels, batch.keys, direction=1.0)
    towards = recipe.attacked(context, batch.inputs, labels, batch.keys, direction=-1.0)
    clean = objective(batch.inputs, labels)
    assert objective(away, labels) > clean > objective(towards, labels)
    for points in (away, towards):
        assert float((points - batch.inputs).abs().max()) <= 0.1 + 1e-6
        assert points.min() >= 0
        assert points.max() <= 1


# --- every recipe --------------------------------------------------------------------------

BUILT: dict[str, Callable[[], nn.Module]] = {
    "ancra": lambda: network(DigitsResNetRA),
}


def test_every_recipe_is_in_the_table() -> None:
    assert set(RECIPES) == {
        "standard",
        "pgd-at",
        "ibp",
        "trades",
        "mart",
        "aerp",
        "agkd-bml",
        "ancra",
    }


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_step_gives_finite_gradients_and_disturbs_nothing(name: str) -> None:
    kind = RECIPES[name]
    assert kind.name == name
    model = BUILT.get(name, network)()
    context, batch = made(model, network().eval() if kind.needs_teacher else None)
    before = snapshot(context.teacher) if context.teacher is not None else {}
    recipe = kind.model_validate({"attack_steps": 2} if "attack_steps" in kind.model_fields else {})
    recipe.check(model, batch.inputs[:2], CLASSES)
    assert all(module.training for module in model.modules())
    terms = recipe.terms(context, batch)
    assert all(term.ndim == 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert all(module.training for module in model.modules())
    if context.teacher is not None:
        after = context.teacher.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items()), "the teacher is fixed"


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"standard", "ibp"}))
def test_the_inner_attack_moves_no_batch_statistics(name: str) -> None:
    """However many steps the attack takes, the batch statistics are updated equally often."""
    kind = RECIPES[name]
    counts = []
    for steps in (1, 6):
        model = BUILT.get(name, network)()
        context, batch = made(model, network().eval() if kind.needs_teacher else None)
        kind.model_validate({"attack_steps": steps}).terms(context, batch)
        counts.append(int(model.bn1.num_batches_tracked))
    assert counts[0] == counts[1]


def test_parameters_are_validated() -> None:
    for kind, values in ((Trades, {"beta": -1}), (Ancra, {"form": "x"}), (PgdAt, {"steps": 3})):
        with pytest.raises(ValueError, match=next(iter(values))):
            kind.model_validate(values)


def test_architectures_without_what_a_recipe_needs() -> None:
    class Plain(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1)[:, :CLASSES]

    class Pooled(DigitsResNet):
        def forward_features(self, inputs: Tensor) -> Tensor:
            return super().forward_features(inputs).mean(dim=(2, 3), keepdim=True)

    inputs = torch.rand(2, 1, 6, 6)
    recipes: list[Recipe] = [Aerp(), AgkdBml()]
    for recipe in recipes:
        with pytest.raises(ModelError, match="does not offer its features"):
            recipe.check(Plain(), inputs, CLASSES)
    with pytest.raises(ModelError, match="single cell"):
        Aerp().check(Pooled(3, 1, 4), inputs, CLASSES)
    for model in (Plain(), network()):
        with pytest.raises(ModelError, match="no reverse attention"):
            Ancra().check(model, inputs, CLASSES)


def test_data_that_lacks_what_a_recipe_needs() -> None:
    dataset = ArrayDataset(torch.rand(4, 1, 6, 6), torch.zeros(4).long(), num_classes=2)
    settings = TrainingSettings.model_validate({"batch_size": 4})
    data = TrainingData(dataset, settings, seed=0, device=torch.device("cpu"))
    with pytest.raises(TrainingError, match="class '1' has no training samples"):
        data.draw(torch.tensor([1]), torch.tensor([5]))
    with pytest.raises(TrainingError, match="needs another class"):
        Ancra().check(network(DigitsResNetRA), dataset.batch([0]), 1)


def test_unknown_recipe() -> None:
    with pytest.raises(UsageError, match="Did you mean 'pgd-at'"):
        RECIPES["pgd_att"]
