"""What the search runs on: agreement is checked, and no choice can change a verdict."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import robench
import robench.records
from robench.acceleration import model_choice as precisions
from robench.acceleration import trial
from robench.acceleration.model_choice import PRECISIONS, SearchChoice, choose_search_model
from robench.acceleration.search_models import EagerModel
from robench.acceleration.variants import Variant, build_variant
from robench.attacks.losses import LOSSES, Loss
from robench.datasets import load_dataset
from robench.errors import UnknownNameError, UsageError
from robench.models import load_model, wrap_module
from robench.models.wrapper import RobenchModel, buffer_fingerprint
from robench.threat_models import ThreatModel

THREAT = ThreatModel.of("Linf", "0.2")


@pytest.fixture(scope="module")
def digits() -> tuple[RobenchModel, Tensor, Tensor]:
    data = load_dataset("digits").subset(64)
    return load_model("digits/Linf-0.2/pgd-at"), data.batch(range(64)), data.labels


def choose(
    model: RobenchModel,
    inputs: Tensor,
    labels: Tensor,
    precision: str,
    passes: int = 10**9,
    batch_size: int | None = 64,
) -> SearchChoice:
    return choose_search_model(
        model,
        inputs,
        labels,
        precision=precision,
        threat_model=THREAT,
        batch_size=batch_size,
        planned_passes=passes,
    )


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_logits_and_gradients_agree_with_the_original(digits, precision, monkeypatch) -> None:
    monkeypatch.setattr(trial, "_TIMING_SECONDS", 0.01)
    model, inputs, labels = digits
    before = buffer_fingerprint(model)
    chosen = choose(model, inputs, labels, precision).models.search
    plain = EagerModel(model)
    loss = Loss(LOSSES["ce"], labels, labels)
    expected, seen = plain.gradient(inputs, loss), chosen.gradient(inputs, loss)
    spread = float(expected.logits.std())
    assert (chosen.logits(inputs) - expected.logits).abs().max() < 0.1 * spread
    assert seen.gradient.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(
        seen.gradient.flatten(1), expected.gradient.flatten(1)
    )
    assert float(similarity.median()) > 0.98
    assert buffer_fingerprint(model) == before
    assert (chosen.tolerance == 0) == (chosen.description == "fp32")


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_what_stands_for_the_original_near_the_boundary_is_exact(
    digits, precision, monkeypatch
) -> None:
    monkeypatch.setattr(trial, "_TIMING_SECONDS", 0.01)
    model, inputs, labels = digits
    choice = choose(model, inputs, labels, precision)
    assert (choice.models.exact.logits(inputs) - model(inputs)).abs().max() < 1e-4
    assert choice.models.exact.tolerance < 1e-3
    if "bf16" in choice.models.search.description:
        assert choice.models.search.tolerance > 10 * choice.models.exact.tolerance


def test_folding_batch_norm_changes_rounding_only(digits) -> None:
    model, inputs, _ = digits
    folded = build_variant(model, Variant(folded=True))
    assert folded is not None
    norms = [m for m in folded.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms
    assert torch.allclose(folded.logits(inputs), model(inputs), atol=1e-4)


def test_networks_whose_forward_takes_more_than_inputs_are_folded_too() -> None:
    data = load_dataset("digits").subset(16)
    model = load_model("digits/Linf-0.2/ancra")  # forward(inputs, y=None, _eval=None)
    folded = build_variant(model, Variant(folded=True))
    assert folded is not None
    assert not [m for m in folded.module.modules() if isinstance(m, nn.BatchNorm2d)]
    points = data.batch(range(16))
    assert torch.allclose(folded.logits(points), model(points), atol=1e-4)


class Asking(nn.Module):
    """Works with one argument's value only, which its card gives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = load_model("digits/Linf-0.2/pgd-at").network

    def forward(self, inputs: Tensor, mode: str | None = None) -> tuple[Tensor]:
        if mode != "logits":
            raise ValueError(mode)
        return (self.inner(inputs),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_card_passes_to_forward_is_passed_to_the_folded_network(dtype) -> None:
    forward = {"arguments": {"mode": "logits"}, "output": [0]}
    model = wrap_module(Asking(), num_classes=10, input={"channels": 1}, forward=forward)
    folded = build_variant(model, Variant(dtype, folded=True))
    assert folded is not None
    assert not [m for m in folded.module.modules() if isinstance(m, nn.BatchNorm2d)]
    points = load_dataset("digits").batch(range(16))
    assert torch.allclose(
        folded.logits(points), model(points), atol=1e-4 if dtype.itemsize > 2 else 0.5
    )


def test_no_form_is_called_folded_that_had_nothing_to_fold() -> None:
    model = load_model("digits/Linf-0.2/vit-pgd-at")
    assert build_variant(model, Variant(folded=True)) is None
    other = build_variant(model, Variant(torch.bfloat16, folded=True))
    assert other is not None
    assert other.description == "bf16"


@pytest.mark.parametrize(("gain", "chosen"), [(1.1, "fp32 folded"), (1.5, "bf16 folded")])
def test_low_precision_must_pay_for_the_second_search_near_the_boundary(
    digits, gain, chosen, monkeypatch
) -> None:
    def measured(_trial: object, form: EagerModel, _what: str, size: int) -> tuple[float, float]:
        rate = {"fp32": 500.0, "fp32 folded": 1000.0, "bf16 folded": 1000.0 * gain}
        return rate.get(form.description, 1.0), size / rate.get(form.description, 1.0)

    monkeypatch.setattr(trial.Trial, "_measured", measured)
    model, inputs, labels = digits
    choice = choose(model, inputs, labels, "auto")
    assert choice.models.search.description == chosen
    assert choice.models.exact.description == "fp32 folded"
    assert (choice.models.search is choice.models.exact) == (gain < 1.3)


@pytest.mark.parametrize(
    ("forward_gain", "gradient_gain", "even"),
    [(3.0, 1.0, "bf16 folded"), (1.6, 1.0, "fp32 folded"), (1.6, 1.6, "bf16 folded")],
)
def test_boundary_walks_get_forward_passes_and_gradients_of_one_precision(
    digits, forward_gain, gradient_gain, even, monkeypatch
) -> None:
    def measured(_trial: object, form: EagerModel, what: str, size: int) -> tuple[float, float]:
        gain = forward_gain if what == "logits" else gradient_gain
        rate = {"fp32": 500.0, "fp32 folded": 1000.0, "bf16 folded": 1000.0 * gain}
        return rate.get(form.description, 1.0), size / rate.get(form.description, 1.0)

    monkeypatch.setattr(trial.Trial, "_measured", measured)
    models = choose(*digits, "auto").models
    assert models.even.description == even
    assert models.exact.description == "fp32 folded"
    mixed = "bf16 folded forward, fp32 folded backward"
    assert models.search.description == (even if gradient_gain > 1.3 else mixed)


def test_fp32_is_the_model_itself(digits) -> None:
    model, inputs, labels = digits
    choice = choose(model, inputs, labels, "fp32")
    assert isinstance(choice.models.search, EagerModel)
    assert choice.models.search.module is model
    assert choice.models.exact is choice.models.search
    assert (choice.models.search.tolerance, choice.batch_size) == (0.0, 64)


def test_a_short_run_is_not_worth_a_measurement(digits, monkeypatch) -> None:
    monkeypatch.setattr(trial, "build_variant", lambda *_: pytest.fail("measured"))
    model, inputs, labels = digits
    assert choose(model, inputs, labels, "auto", passes=1000).models.search.description == "fp32"


def test_a_run_of_a_second_is_worth_folding_but_no_timing(digits, monkeypatch) -> None:
    monkeypatch.setattr(precisions, "_pilot", lambda *_: (10_000.0, 1.0))
    monkeypatch.setattr(trial, "_seconds_a_call", lambda _: pytest.fail("timed"))
    model, inputs, labels = digits
    choice = choose(model, inputs, labels, "auto", passes=10_000)
    assert choice.models.search is choice.models.exact
    assert choice.models.search.description == "fp32 folded"


def test_a_model_that_falls_at_once_is_not_measured(monkeypatch) -> None:
    monkeypatch.setattr(trial, "build_variant", lambda *_: pytest.fail("measured"))
    model = load_model("digits/Linf-0.2/standard")
    data = load_dataset("digits").subset(64)
    choice = choose(model, data.batch(range(64)), data.labels, "auto")
    assert choice.models.search.description == "fp32"


def test_larger_batches_are_taken_while_they_pay(digits, monkeypatch) -> None:
    model, inputs, labels = digits
    monkeypatch.setattr(precisions, "_AUTO", {})
    monkeypatch.setattr("robench.acceleration.batch_size._COMFORTABLE", 0)

    def chosen(seconds: Callable[[int], float]) -> int:
        def measured(_trial: object, _model: object, _what: str, size: int) -> tuple[float, float]:
            return size / seconds(size), seconds(size)

        monkeypatch.setattr(trial.Trial, "_measured", measured)
        return choose(model, inputs, labels, "auto", batch_size=None).batch_size

    assert chosen(lambda size: 1e-3 + 1e-5 * size) == 1024
    assert chosen(lambda size: 1e-5 * size if size < 512 else 2e-5 * size) == 256
    assert chosen(lambda size: 1e-3 * size) == 256  # a long call has nothing left to gain


class Untouchable(nn.Module):
    """Refuses inputs that are not float32, cannot be traced, and looks into its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.mean() > 2:
            return inputs.new_zeros(len(inputs), 10)
        if inputs.dtype != torch.float32 or self.conv.weight.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return self.fc(self.conv(inputs).relu().mean(dim=(2, 3))) * self.fc.weight.norm()


def test_a_network_that_takes_no_other_form_is_run_as_it_is(monkeypatch) -> None:
    monkeypatch.setattr(trial, "_TIMING_SECONDS", 0.01)
    model = wrap_module(Untouchable(), num_classes=10, input={"channels": 1})
    inputs, labels = torch.rand(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64)
    assert choose(model, inputs, labels, "auto").models.search.description.startswith("fp32")
    with pytest.raises(UsageError, match="bf16 the logits do not agree"):
        choose(model, inputs, labels, "bf16")


def test_unknown_precisions_list_near_misses(digits) -> None:
    with pytest.raises(UnknownNameError, match="bf16"):
        choose(*digits, "bf-16")
    assert "auto" in PRECISIONS


def test_low_precision_gives_the_same_verdicts_as_fp32(monkeypatch) -> None:
    monkeypatch.setattr(precisions, "_FEW", 0)
    outcomes = {}
    for precision in ("fp32", "bf16"):
        (stored,) = robench.evaluate(
            "digits/Linf-0.2/pgd-at",
            "digits",
            robench.records.Suite(
                name="test",
                attacks=(
                    robench.records.AttackSpec(
                        name="apgd-ce", attack="apgd", params={"loss": "ce", "steps": 30}
                    ),
                ),
            ),
            n=100,
            device="cpu",
            precision=precision,
        )
        outcomes[precision] = stored.table.set_index("sample_id")
        broken = outcomes[precision]["outcome"] == "broken"
        # Whatever the search saw, the verdict is the original model's in float32.
        assert (outcomes[precision]["adv_margin"][broken] < 0).all()
    differing = (outcomes["fp32"]["outcome"] != outcomes["bf16"]["outcome"]).sum()
    assert differing <= 2


def test_linear_layers_through_onednn_give_the_same_logits_and_gradients() -> None:
    model = load_model("digits/Linf-0.2/vit-pgd-at")
    data = load_dataset("digits").subset(20)
    inputs, labels = data.batch(range(20)), data.labels
    before = buffer_fingerprint(model)
    form = build_variant(model, Variant(folded=True, onednn=True))
    assert form is not None
    assert form.description == "fp32 onednn"
    original, loss = EagerModel(model), Loss(LOSSES["ce"], labels, labels)
    expected, seen = original.gradient(inputs, loss), form.gradient(inputs, loss)
    torch.testing.assert_close(seen.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.gradient, expected.gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(form.logits(inputs), original.logits(inputs), rtol=1e-5, atol=1e-5)
    assert sum(type(part) is nn.Linear for part in model.network.modules()) == 9
    assert buffer_fingerprint(model) == before


def test_unfused_attention_is_switched_on_for_its_own_passes_only(monkeypatch) -> None:
    model = load_model("digits/Linf-0.2/vit-pgd-at")
    data = load_dataset("digits").subset(32)
    inputs, labels = data.batch(range(32)), data.labels
    form = build_variant(model, Variant(folded=True, onednn=True, unfused_attention=True))
    assert form is not None
    assert (form.description, form.precision) == ("fp32 onednn unfused-attention", "fp32")
    fused = torch.backends.cuda.flash_sdp_enabled  # the flag of the CPU's kernel, too
    seen = []
    attention = nn.functional.scaled_dot_product_attention

    def watched(*arguments: Tensor) -> Tensor:
        seen.append(fused())
        return attention(*arguments)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    plain = EagerModel(model)
    loss = Loss(LOSSES["ce"], labels, labels)
    expected, given = plain.gradient(inputs, loss), form.gradient(inputs, loss)
    torch.testing.assert_close(given.gradient, expected.gradient, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(form.logits(inputs), plain.logits(inputs), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        form.jacobian(inputs)[1], plain.jacobian(inputs)[1], atol=1e-5, rtol=1e-3
    )
    order = [True, False, False, True, False, True]  # plain is True; two layers a pass
    assert seen == [setting for setting in order for _ in range(2)]
    assert fused()


def test_onednn_products_take_columns_as_well_as_rows_and_layers_without_bias() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Linear(8, 8, bias=False)
            self.columns = nn.Linear(8, 8)
            self.head = nn.Linear(64, 10)

        def forward(self, inputs: Tensor) -> Tensor:
            mixed = self.columns(self.rows(inputs).transpose(-2, -1))
            logits: Tensor = self.head(mixed.transpose(-2, -1).flatten(1))
            return logits

    torch.manual_seed(0)
    model = wrap_module(Mixer(), num_classes=10)
    form = build_variant(model, Variant(onednn=True))
    assert form is not None
    inputs, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
    loss = Loss(LOSSES["ce"], labels, labels)
    expected, seen = EagerModel(model).gradient(inputs, loss), form.gradient(inputs, loss)
    torch.testing.assert_close(seen.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.gradient, expected.gradient, rtol=1e-4, atol=1e-6)


def test_a_single_linear_layer_is_no_reason_for_a_form_of_its_own(
    digits: tuple[RobenchModel, Tensor, Tensor],
) -> None:
    assert build_variant(digits[0], Variant(folded=True, onednn=True)) is None
