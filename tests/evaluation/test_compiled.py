"""Compiled forms: full batches only, the same answers, and nothing lost where there are none."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robench.attacks.losses import LOSSES, Loss, margin
from robench.evaluation import compiled as forms
from robench.evaluation import precision as precisions
from robench.evaluation import timing, trial
from robench.evaluation.compiled import Check, CompiledModel, compiling_pays, try_compiled
from robench.evaluation.precision import choose_search_model
from robench.evaluation.search_models import EagerModel
from robench.models import wrap_module
from robench.threat_models import ThreatModel

SIZE = 16


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 4, 5)
    )
    return module.eval().requires_grad_(False)


@pytest.fixture
def eager() -> EagerModel:
    return EagerModel(network(), "fp32 folded", tolerance=1e-6)


def batch(count: int) -> tuple[Tensor, Loss]:
    generator = torch.Generator().manual_seed(count)
    points = torch.rand(count, 1, 6, 6, generator=generator)
    labels = torch.randint(5, (count,), generator=generator)
    targets = (labels + 1) % 5
    return points, Loss(LOSSES["dlr-targeted"], labels, targets)


def check_of(eager: EagerModel, limit: float = 1e-3) -> Check:
    points, loss = batch(7)
    expected = margin(eager.logits(points), loss.labels)
    return Check(points, loss.labels, expected, limit)


class Recorded:
    """A compiled form that takes one size, as a static one does."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls = 0

    def __call__(self, points: Tensor) -> Tensor:
        assert points.shape == (SIZE, 1, 6, 6)
        assert points.is_contiguous()
        self.calls += 1
        return self.module(points)


@pytest.mark.parametrize("count", [1, 11, 12, 13, SIZE, SIZE + 1])
def test_nearly_full_batches_are_filled_up_and_others_are_not(eager, count) -> None:
    run = Recorded(eager.module)
    points, loss = batch(count)
    forward = CompiledModel(eager, run, "logits", SIZE, least=12)
    backward = CompiledModel(eager, run, "gradient", SIZE, least=12)
    assert torch.allclose(forward.logits(points), eager.logits(points), atol=1e-6)
    for mine, theirs in zip(
        backward.gradient(points, loss), eager.gradient(points, loss), strict=True
    ):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert run.calls == (2 if 12 <= count <= SIZE else 0)


def test_each_form_is_used_for_the_passes_that_it_was_compiled_for(eager) -> None:
    run = Recorded(eager.module)
    points, loss = batch(SIZE)
    CompiledModel(eager, run, "logits", SIZE, least=1).gradient(points, loss)
    CompiledModel(eager, run, "gradient", SIZE, least=1).logits(points)
    model = CompiledModel(eager, run, "gradient", SIZE, least=1)
    for mine, theirs in zip(model.jacobian(points), eager.jacobian(points), strict=True):
        assert torch.equal(mine, theirs)
    assert run.calls == 0


class Graph(torch.autograd.Function):
    """As a captured graph: what it returns is overwritten by the next call."""

    logits = torch.empty(SIZE, 5)
    gradient = torch.empty(SIZE, 1, 6, 6)

    @staticmethod
    def forward(ctx: Any, points: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return Graph.logits.copy_(points.flatten(1) @ weight).view(SIZE, 5)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return Graph.gradient.copy_((slope @ weight.T).view(SIZE, 1, 6, 6)), None


def test_what_is_handed_out_survives_the_next_call(eager) -> None:
    weight = torch.randn(36, 5, generator=torch.Generator().manual_seed(0))

    def run(points: Tensor) -> Tensor:
        return Graph.apply(points, weight)

    forward = CompiledModel(eager, run, "logits", SIZE, least=1)
    backward = CompiledModel(eager, run, "gradient", SIZE, least=1)
    (points, loss), (others, another) = batch(SIZE), batch(SIZE - 1)
    logits, seen = forward.logits(points), backward.gradient(points, loss)
    forward.logits(others)
    backward.gradient(others, another)
    assert torch.allclose(logits, points.flatten(1) @ weight, atol=1e-5)
    assert torch.allclose(seen.logits, logits, atol=1e-5)
    _, slope = loss(logits)
    assert torch.allclose(seen.gradient.flatten(1), slope @ weight.T, atol=1e-5)


@pytest.mark.parametrize("kind", ["logits", "gradient"])
@pytest.mark.parametrize(
    ("gain", "least"), [(0.5, None), (1.05, None), (1.2, 14), (1.5, 12), (9.0, 12)]
)
def test_only_a_faster_form_is_kept_and_for_fewer_inputs_the_faster_it_is(
    eager, kind, gain, least, monkeypatch
) -> None:
    monkeypatch.setattr(forms, "gain", lambda *_: gain)
    chosen = try_compiled(eager, kind, SIZE, check_of(eager), lambda module, _: Recorded(module))
    if least is None:
        assert chosen is eager
    else:
        assert isinstance(chosen, CompiledModel)
        assert (chosen.kind, chosen.least, chosen.size) == (kind, least, SIZE)
        assert chosen.description == "fp32 folded compiled"
        assert 1e-6 <= chosen.tolerance < 1e-4


class Reversed(torch.autograd.Function):
    """The right logits, the wrong way."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return -slope


def no_compiler(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    raise RuntimeError("no compiler")


def broken_when_run(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda _: no_compiler(module, device)(torch.zeros(1))


def wrong(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda points: module(points).flip(1)


def not_a_number(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda points: module(points) * torch.nan


def of_another_shape(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda points: module(points)[:3]


@pytest.mark.parametrize("kind", ["logits", "gradient"])
@pytest.mark.parametrize(
    "compile_form", [no_compiler, broken_when_run, wrong, not_a_number, of_another_shape]
)
def test_whatever_goes_wrong_the_eager_form_goes_on(
    eager, kind, compile_form, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(forms, "gain", lambda *_: 9.0)
    assert try_compiled(eager, kind, SIZE, check_of(eager), compile_form) is eager
    assert eager.tolerance == 1e-6
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["logits", "gradient"])
def test_a_form_that_fails_during_the_search_is_given_up(eager, kind, monkeypatch) -> None:
    monkeypatch.setattr(forms, "gain", lambda *_: 9.0)
    working, calls = True, 0

    def run(points: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if not working:
            raise RuntimeError("out of memory")
        return eager.module(points)

    chosen = try_compiled(eager, kind, SIZE, check_of(eager), lambda *_: run)
    working, calls = False, 0
    points, loss = batch(SIZE)
    for _ in range(3):
        assert torch.equal(chosen.logits(points), eager.logits(points))
        assert torch.equal(
            chosen.gradient(points, loss).gradient, eager.gradient(points, loss).gradient
        )
    assert calls == 1


def test_a_form_whose_gradients_point_elsewhere_is_not_used(eager, monkeypatch) -> None:
    monkeypatch.setattr(forms, "gain", lambda *_: 9.0)

    def compile_form(module: nn.Module, _: torch.device) -> Callable[[Tensor], Tensor]:
        return lambda points: Reversed.apply(module(points))

    assert try_compiled(eager, "gradient", SIZE, check_of(eager), compile_form) is eager
    assert try_compiled(eager, "logits", SIZE, check_of(eager), compile_form) is not eager


def test_the_tolerance_is_twice_the_error_that_was_seen(eager, monkeypatch) -> None:
    monkeypatch.setattr(forms, "gain", lambda *_: 9.0)
    check = check_of(eager, limit=1.0)
    shifted = Check(check.points, check.labels, check.expected + 0.25, check.limit)
    chosen = try_compiled(eager, "logits", SIZE, shifted, lambda module, _: module)
    assert math.isclose(chosen.tolerance, 0.5, rel_tol=1e-4)
    assert (
        try_compiled(
            eager,
            "logits",
            SIZE,
            Check(check.points, check.labels, check.expected + 1.1, check.limit),
            lambda module, _: module,
        )
        is eager
    )


@pytest.mark.parametrize("kind", ["logits", "gradient"])
def test_compiling_is_for_long_searches_on_devices_that_gain_from_it(kind) -> None:
    def pays(device: str, seconds: float) -> bool:
        passes = seconds * 1000 / forms._SHARE
        place = torch.device(device)
        return compiling_pays(network(), kind, place, passes=passes, rate=1000, batch_size=SIZE)

    cost = forms._SECONDS + 4 * forms._SECONDS_A_LAYER + forms._CALLS * SIZE / 1000
    for device in ("cpu", "cuda"):
        needed = forms._CLEARLY * cost / forms._LIKELY_GAIN[device][kind]
        assert not pays(device, 0.99 * needed)
        assert pays(device, 1.01 * needed)
        assert not pays(device, 60)
    assert not pays("mps", 1e12)


def test_gains_are_the_ratio_of_the_best_calls(monkeypatch) -> None:
    now = 0.0
    spans = {"before": iter([9.0, 3.0, 2.0, 4.0, 5.0]), "after": iter([9.0, 2.0, 1.0, 0.5, 5.0])}

    def call(name: str) -> Callable[[], object]:
        def spend() -> None:
            nonlocal now
            now += next(spans[name])

        return spend

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    # The first call of each warms up; 12.5 seconds have passed after three more.
    assert timing.gain(call("before"), call("after"), seconds=12.0) == 2.0 / 0.5


# --- in the choice of the search's model -----------------------------------------------------


def choose(precision: str, passes: float) -> precisions.SearchChoice:
    model = wrap_module(network(), num_classes=5, input={"channels": 1})
    points, _ = batch(32)
    return choose_search_model(
        model,
        points,
        model(points).argmax(dim=1),
        precision=precision,
        threat_model=ThreatModel.of("Linf", "0.001"),
        batch_size=SIZE,
        planned_passes=passes,
    )


def test_long_searches_run_compiled_and_what_is_exact_does_not(monkeypatch) -> None:
    monkeypatch.setattr(trial, "_TIMING_SECONDS", 0.01)
    monkeypatch.setattr(forms, "gain", lambda *_: 1.5)
    monkeypatch.setattr(forms, "_torch_compile", lambda module, _: module)
    choice = choose("auto", 1e12)
    assert choice.models.search.description.count("compiled") in (1, 2)
    assert "compiled" not in choice.models.exact.description
    assert choose("bf16", 1e12).models.search.description.startswith("bf16")
    points, loss = batch(13)
    assert torch.allclose(
        choice.models.search.logits(points),
        choice.models.exact.logits(points),
        atol=choice.models.search.tolerance,
    )
    assert choice.models.search.gradient(points, loss).gradient.shape == points.shape


@pytest.mark.parametrize(("precision", "passes"), [("fp32", 1e12), ("auto", 1e5), ("bf16", 1e5)])
def test_short_searches_and_fp32_are_never_compiled(precision, passes, monkeypatch) -> None:
    monkeypatch.setattr(trial, "_TIMING_SECONDS", 0.01)
    monkeypatch.setattr(trial, "try_compiled", lambda *_: pytest.fail("compiled"))
    choose(precision, passes)


# --- with torch's own tracing ----------------------------------------------------------------


def test_one_tracing_serves_every_size_and_leaves_no_trace(eager, monkeypatch, capfd) -> None:
    import torch._dynamo
    import torch._inductor

    monkeypatch.setattr(forms, "gain", lambda *_: 9.0)
    compiled: list[tuple[int, ...]] = []

    def backend(module: Any, inputs: list[Tensor]) -> Any:
        compiled.extend(tuple(each.shape) for each in inputs if each.dim() == 4)
        return module.forward

    def compile_form(module: nn.Module, _: torch.device) -> Callable[[Tensor], Tensor]:
        return torch.compile(module, dynamic=False, backend=backend)

    def state() -> tuple[object, ...]:
        return (
            torch._dynamo.config.get_config_copy(),
            torch._inductor.config.get_config_copy(),
            logging.root.manager.disable,
            torch.is_grad_enabled(),
        )

    before = state()
    for kind in ("logits", "gradient"):
        chosen = try_compiled(eager, kind, SIZE, check_of(eager), compile_form)
        assert isinstance(chosen, CompiledModel)
        tracings = len(compiled)
        assert (SIZE, 1, 6, 6) in compiled[-2:]
        for count in (1, 5, 12, 13, 15, SIZE, 40):
            points, loss = batch(count)
            assert torch.allclose(chosen.logits(points), eager.logits(points), atol=1e-6)
            mine, theirs = chosen.gradient(points, loss), eager.gradient(points, loss)
            assert torch.allclose(mine.gradient, theirs.gradient, atol=1e-6)
        assert len(compiled) == tracings
    assert state() == before
    tracings = len(compiled)
    torch.compile(nn.Tanh(), backend=backend)(torch.zeros(1, 1, 1, 1))
    assert len(compiled) == tracings + 1  # what others compile is compiled
    assert capfd.readouterr() == ("", "")


class Untraceable(nn.Module):
    """Decides by values, in a way that no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, points: Tensor) -> Tensor:
        seen = {"mean": float(points.detach().mean())}
        print(end="")
        return self.inner(points) if seen["mean"] < 2 else self.inner(points) * 2


@pytest.mark.parametrize("kind", ["logits", "gradient"])
def test_a_network_that_cannot_be_traced_as_a_whole_gives_the_same_answers(
    kind, monkeypatch
) -> None:
    monkeypatch.setattr(forms, "gain", lambda *_: 9.0)
    eager = EagerModel(Untraceable())

    def compile_form(module: nn.Module, _: torch.device) -> Callable[[Tensor], Tensor]:
        return torch.compile(module, dynamic=False, backend="eager")

    chosen = try_compiled(eager, kind, SIZE, check_of(eager), compile_form)
    points, loss = batch(14)
    assert torch.allclose(chosen.logits(points), eager.logits(points), atol=1e-6)
    seen = chosen.gradient(points, loss).gradient
    assert torch.allclose(seen, eager.gradient(points, loss).gradient, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="no C++ compiler"
)
@pytest.mark.parametrize("kind", ["logits", "gradient"])
def test_the_real_compiler_gives_the_same_answers_in_silence(
    eager, kind, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(forms, "gain", lambda *_: 9.0)
    chosen = try_compiled(eager, kind, SIZE, check_of(eager))
    assert isinstance(chosen, CompiledModel)
    assert capfd.readouterr() == ("", "")
    for count in (3, 12, 15, SIZE):
        points, loss = batch(count)
        assert torch.allclose(chosen.logits(points), eager.logits(points), atol=1e-5)
        mine, theirs = chosen.gradient(points, loss), eager.gradient(points, loss)
        assert torch.allclose(mine.gradient, theirs.gradient, atol=1e-5)
        assert torch.allclose(mine.losses, theirs.losses, atol=1e-5)
    assert capfd.readouterr() == ("", "")
