"""What the search runs on: fixed rules, agreement, and real times where only times can tell."""

from __future__ import annotations

import itertools
import time
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
import robench.records
from robench import request
from robench.acceleration import model_choice, timing
from robench.acceleration.model_choice import SearchChoice, choose_search_model
from robench.acceleration.search_models import LOWER, SearchModel, build_variant, exact_variant
from robench.attacks.losses import LOSSES, Loss
from robench.datasets import load_dataset
from robench.errors import UsageError
from robench.models import load_model, wrap_module
from robench.models.wrapper import RobenchModel, buffer_fingerprint
from robench.results import StoredRecord
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

THREAT = ThreatModel.of("Linf", "0.2")
FOREVER = 10**9
CPU = torch.device("cpu")
"""Planned passes of a search that is worth every measurement"""


@pytest.fixture(scope="module")
def digits() -> tuple[RobenchModel, Tensor, Tensor]:
    data = load_dataset("digits").subset(64)
    return load_model("digits/Linf-0.2/pgd-at"), data.batch(range(64)), data.labels


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "seconds_a_call", lambda _: pytest.fail("timed"))


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which bfloat16 is worth a try."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def choose(
    model: RobenchModel,
    inputs: Tensor,
    labels: Tensor,
    precision: str,
    passes: int = FOREVER,
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


def descriptions(choice: SearchChoice) -> tuple[str, str, str, str]:
    models = choice.models
    forms = (models.search, models.queries, models.boundary, models.exact)
    search, queries, boundary, exact = (form.description for form in forms)
    return search, queries, boundary, exact


# --- rules that no time can change ------------------------------------------------------------


@pytest.mark.parametrize("passes", [10, FOREVER])
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken_untimed(digits, untimed, precision, passes) -> None:
    model, inputs, labels = digits
    before = buffer_fingerprint(model)
    choice = choose(model, inputs[:16], labels[:16], precision, passes)
    form = f"{precision} folded channels-last"
    assert descriptions(choice) == (form, form, form, exact_variant(CPU).name)
    assert choice.reason == "asked for"
    assert (choice.models.exact.logits(inputs) - model(inputs)).abs().max() < 1e-4
    assert choice.models.exact.tolerance < 1e-3
    if precision != "tf32":  # a CPU has no other float32
        assert choice.models.search.tolerance > 10 * choice.models.exact.tolerance
    assert buffer_fingerprint(model) == before


@pytest.mark.parametrize("passes", [10, FOREVER])
def test_fp32_is_the_model_itself(digits, untimed, passes) -> None:
    model, inputs, labels = digits
    choice = choose(model, inputs, labels, "fp32", passes)
    assert isinstance(choice.models.search, SearchModel)
    assert choice.models.search.module is model
    assert choice.models.different() == [choice.models.search]
    assert (choice.models.search.tolerance, choice.batch_size) == (0.0, 64)


@pytest.mark.parametrize(
    ("passes", "form", "reason"),
    [
        (1000, "fp32", "fewer than 2000 passes are to be expected"),
        (4000, exact_variant(CPU).name, "not timed, as the search takes less than 3 s"),
    ],
)
def test_a_short_run_is_not_worth_a_measurement(
    digits, untimed, monkeypatch, passes, form, reason
) -> None:
    # A machine that is busy with other things would make it a long one.
    clock = SimpleNamespace(perf_counter=itertools.count(step=0.001).__next__)
    monkeypatch.setattr(model_choice, "time", clock)
    choice = choose(*digits, "auto", passes, batch_size=None)
    assert set(descriptions(choice)) == {form}
    assert choice.models.different() == [choice.models.search]
    assert choice.reason == reason
    assert choice.is_short


def test_a_model_that_falls_at_once_is_not_measured(untimed) -> None:
    model = load_model("digits/Linf-0.2/standard")
    data = load_dataset("digits").subset(64)
    choice = choose(model, data.batch(range(64)), data.labels, "auto", batch_size=None)
    assert descriptions(choice) == ("fp32",) * 4
    assert choice.is_short


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_processors_without_bfloat16_try_none(digits, untimed, monkeypatch, capability) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    choice = choose(*digits, "auto")
    # Without AVX-512 convolutions are faster channels last (benchmarks/results/forms_digits.md).
    assert descriptions(choice) == ("fp32 folded channels-last",) * 4
    assert choice.reason == "no lower precision is of use here"
    assert not choice.is_short


@pytest.mark.parametrize(
    ("device", "capability", "form"),
    [
        ("cpu", "AVX2", "fp32 folded channels-last"),
        ("cpu", "AVX512", "fp32 folded"),
        ("cuda", "AVX2", "fp32 folded"),
    ],
)
def test_the_form_in_float32_follows_from_the_device(monkeypatch, device, capability, form) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert exact_variant(torch.device(device)).name == form


# --- times that leave no doubt ----------------------------------------------------------------


class Lazy(nn.Module):
    """Sleeps over a batch in one precision, in forward passes alone or in those with gradients."""

    def __init__(self, slow: torch.dtype, when: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 10)
        self.slow, self.when = slow, when

    def forward(self, inputs: Tensor) -> Tensor:
        kind = "gradient" if torch.is_grad_enabled() else "logits"
        if self.second.weight.dtype == self.slow and self.when in (kind, "both"):
            time.sleep(0.05)
        maps = self.second(self.first(inputs).relu()).relu()
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("slow", "when", "search", "queries"),
    [
        (torch.float32, "both", "bf16", "bf16"),
        (torch.bfloat16, "both", "fp32", "fp32"),
        (torch.float32, "logits", None, "bf16"),
        (torch.float32, "gradient", "bf16", None),
    ],
)
def test_the_faster_form_is_taken_for_each_kind_of_pass(
    capable, slow, when, search, queries
) -> None:
    torch.manual_seed(0)
    model = wrap_module(Lazy(slow, when), num_classes=10, input={"channels": 1})
    inputs = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
    choice = choose_search_model(
        model,
        inputs,
        labels,
        precision="auto",
        threat_model=ThreatModel.of("Linf", "0.001"),
        batch_size=16,
        planned_passes=FOREVER,
    )
    found = descriptions(choice)
    assert search is None or found[0].startswith(search)
    assert queries is None or found[1].startswith(queries)
    # Along the boundary, and near it, nothing but float32.
    assert found[2:] == ("fp32", "fp32")
    # Whoever runs this again and gets another form reads why.
    for form in ("fp32: ", "bf16 channels-last: "):
        assert form in choice.reason


class Sleeping(nn.Module):
    """Takes a time that depends on the batch, and falls to nothing."""

    def __init__(self, seconds: dict[int, float], otherwise: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seconds, self.otherwise = seconds, otherwise

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(self.seconds.get(len(inputs), self.otherwise))
        logits: Tensor = inputs.flatten(1)[:, :10] * self.scale
        return logits


@pytest.mark.parametrize(
    ("seconds", "otherwise", "batch"),
    [
        ({}, 0.01, 1024),  # whatever the batch, a call takes the same
        ({512: 0.1}, 0.01, 256),  # twice the inputs take ten times as long
        ({512: 0.011, 1024: 0.2}, 0.01, 512),
        ({256: 0.2}, 0.01, 256),  # a long call has nothing left to gain
        ({}, 0.2, 256),
    ],
)
def test_larger_batches_are_taken_while_they_pay(monkeypatch, seconds, otherwise, batch) -> None:
    monkeypatch.setattr("robench.acceleration.timing._COMFORTABLE", 0)
    model = wrap_module(Sleeping(seconds, otherwise), num_classes=10, input={"channels": 1})
    inputs = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
    choice = choose_search_model(
        model,
        inputs,
        labels,
        precision="fp32",
        threat_model=ThreatModel.of("Linf", "0.001"),
        planned_passes=FOREVER,
    )
    assert choice.batch_size == batch


# --- what takes no other form, and what is refused ---------------------------------------------


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


def test_a_network_that_takes_no_other_form_is_run_as_it_is(capable) -> None:
    torch.manual_seed(0)
    model = wrap_module(Untouchable(), num_classes=10, input={"channels": 1})
    inputs = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
    threat = ThreatModel.of("Linf", "0.001")
    wanted = {"threat_model": threat, "batch_size": 16, "planned_passes": FOREVER}
    choice = choose_search_model(model, inputs, labels, precision="auto", **wanted)
    assert descriptions(choice) == ("fp32",) * 4
    with pytest.raises(UsageError, match="bf16 the logits or their gradients do not agree"):
        choose_search_model(model, inputs, labels, precision="bf16", **wanted)


class Coarse(nn.Module):
    """Gives other logits as soon as its weights are not float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.middle = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.middle(self.conv(inputs)).mean(dim=(2, 3))
        logits: Tensor = self.fc(maps.float())
        return logits if self.middle.weight.dtype == torch.float32 else logits.flip(1)


def test_a_form_with_other_logits_is_not_taken(capable) -> None:
    torch.manual_seed(0)
    model = wrap_module(Coarse(), num_classes=10, input={"channels": 1})
    inputs = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
    with pytest.raises(UsageError, match="do not agree"):
        choose(model, inputs, labels, "bf16")


class Straight(torch.autograd.Function):
    """Rounds forwards; backwards the identity."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return (255 * inputs).round() / 255

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0]


class Rounded(nn.Module):
    """What a trace folds, rounding's own derivative of zero and all."""

    def __init__(self) -> None:
        super().__init__()
        self.network = load_model("digits/Linf-0.2/pgd-at").network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(Straight.apply(inputs))
        return logits


def test_a_form_that_loses_a_backward_pass_of_the_networks_own_is_not_taken(digits) -> None:
    inputs, labels = digits[1][:16], digits[2][:16]
    model = wrap_module(Rounded(), num_classes=10, input={"channels": 1})
    folded = build_variant(model, exact_variant(CPU))
    loss = Loss(LOSSES["margin"], labels, labels)
    assert torch.allclose(folded.logits(inputs), model(inputs), atol=1e-4)
    assert not folded.gradient(inputs, loss).gradient.any()
    choice = choose(model, inputs, labels, "bf16")
    assert not any("folded" in form for form in descriptions(choice))
    for form in (choice.models.search, choice.models.exact):
        assert form.gradient(inputs, loss).gradient.any()


def test_every_precision_of_a_request_has_a_form() -> None:
    assert ("auto", "fp32", *LOWER) == request.PRECISIONS


# --- numbers ----------------------------------------------------------------------------------


@cache
def searched(precision: str, n: int, steps: int) -> list[StoredRecord]:
    """Records of APGD and Square with so many samples and steps."""
    apgd = robench.records.AttackSpec(
        name="apgd-ce", attack="apgd", params={"loss": "ce", "steps": steps}
    )
    square = robench.records.AttackSpec(
        name="square", attack="square", params={"queries": 2 * steps}
    )
    return robench.evaluate(
        "digits/Linf-0.2/pgd-at",
        "digits",
        robench.records.Suite(name="test", attacks=(apgd, square)),
        n=n,
        device="cpu",
        precision=precision,
    )


@pytest.mark.usefixtures("unexamined")
@pytest.mark.parametrize(
    ("precision", "n", "steps", "differing"),
    [
        ("auto", 50, 25, 0),
        pytest.param("bf16", 30, 10, 1, marks=pytest.mark.slow),
        pytest.param("auto", 100, 30, 0, marks=pytest.mark.slow),
        pytest.param("bf16", 100, 30, 2, marks=pytest.mark.slow),
    ],
)
def test_other_forms_give_the_verdicts_of_float32(precision, n, steps, differing) -> None:
    outcomes = {}
    for name in ("fp32", precision):
        stored = searched(name, n, steps)
        expected = "fp32" if name == "fp32" else "fp32 folded" if name == "auto" else "bf16"
        where = [one.record.environment for one in stored]
        assert all(one.precision.startswith(expected) for one in where)
        assert all((one.precision_reason == "asked for") == (name != "auto") for one in where)
        tables = [one.table.set_index("sample_id") for one in stored]
        outcomes[name] = [table["outcome"] for table in tables]
        # Whatever the search saw, the verdict is the original model's in float32.
        assert all((t["adv_margin"][t["outcome"] == "broken"] < 0).all() for t in tables)
    for mine, theirs in zip(outcomes["fp32"], outcomes[precision], strict=True):
        assert (mine != theirs).sum() <= differing
