"""A stored record answers only for the model that gives its gradients again: same outputs do not do."""

from __future__ import annotations

import functools
import linecache
import pickle
import pkgutil
import pydoc
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_means import class_means
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence, register_kl
from torch.nn import functional as F

import robench
from robench.datasets import Dataset, load_dataset
from robench.evaluation.given import Given, few_rows, joined
from robench.evaluation.recognition import check_recognised
from robench.evaluation.runner import Listener
from robench.models import load_model, wrap_module
from robench.models.wrapper import RobenchModel
from robench.models.zoo import list_cards
from robench.records import AttackSpec, Slopes, Suite
from robench.results import Store

N = 20
CPU = torch.device("cpu")
PGD = Suite(name="one", attacks=(AttackSpec(name="pgd", attack="pgd", params={"steps": 2}),))


@functools.cache
def data() -> Dataset:
    return load_dataset("digits", n=N)


class Net(nn.Module):
    """The nearest class by mean, and what a test does to its logits."""

    def __init__(self) -> None:
        super().__init__()
        means = class_means()
        self.last = nn.Linear(64, 10)
        self.last.weight.data = 2 * means
        self.last.bias.data = -means.square().sum(dim=1)

    def pull(self, logits: Tensor) -> Tensor:
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.pull(self.last(inputs.flatten(1)))


def signed(logits: Tensor, sign: float) -> Tensor:
    """The same numbers, to the bit; with the sign -1 their gradient is turned round."""
    return logits if sign > 0 else 2 * logits.detach() - logits


def wrapped(module: nn.Module) -> RobenchModel:
    return wrap_module(module, num_classes=10, input={"channels": 1}, threat_model="Linf-0.05")


def given(module: nn.Module, rows: list[int] | None = None) -> Given:
    return Given.of(wrapped(module), data(), few_rows(data()) if rows is None else rows, CPU)


def unlike(told: Given, now: Given) -> list[bool]:
    """Figure by figure, whether any sample's is another one."""
    known, found = now.rising_unlike(told.slopes())
    assert bool(known.all())
    return found.any(dim=0).tolist()


# --- what no key sees --------------------------------------------------------------------------

Change = Callable[[], object]


def _content(file: Path) -> str:
    with file.open() as stream:
        return stream.read()


class Kinds:
    """Kind → a module, and who turns its gradients round: nothing of it is in a key."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.file, self.patch = folder / "sign.txt", patch
        self.file.write_text("1")
        self.hidden = types.ModuleType("hidden_of_a_test")
        self.hidden.sign = lambda: 1.0  # type: ignore[attr-defined]
        patch.setitem(sys.modules, self.hidden.__name__, self.hidden)

    def _own(self, sign: Callable[[nn.Module], float]) -> nn.Module:
        def pull(self: nn.Module, logits: Tensor) -> Tensor:
            return signed(logits, sign(self))

        return type("Own", (Net,), {"pull": pull})()

    def _elsewhere(self) -> None:
        self.hidden.sign = lambda: -1.0  # type: ignore[attr-defined]

    def unpickled(self) -> tuple[nn.Module, Change]:
        content = b"chidden_of_a_test\nsign\n."
        return self._own(lambda _: pickle.loads(content)()), self._elsewhere

    def located(self) -> tuple[nn.Module, Change]:
        return self._own(lambda _: pydoc.locate("hidden_of_a_test.sign")()), self._elsewhere  # type: ignore[operator]

    def resolved(self) -> tuple[nn.Module, Change]:
        return self._own(lambda _: pkgutil.resolve_name("hidden_of_a_test:sign")()), self._elsewhere

    def read_in_a_thread(self) -> tuple[nn.Module, Change]:
        file = self.file

        def sign(_: nn.Module) -> float:
            found: list[str] = []
            thread = threading.Thread(target=lambda: found.append(_content(file)))
            thread.start()
            thread.join()
            return float(found[0])

        return self._own(sign), lambda: file.write_text("-1")

    def read_by_linecache(self) -> tuple[nn.Module, Change]:
        name = str(self.file)
        change = lambda: self.file.write_text("-1")  # noqa: E731
        return self._own(lambda _: float(linecache.updatecache(name)[0])), change

    def subclasses(self) -> tuple[nn.Module, Change]:
        base, kept = type("Base", (), {}), []
        sign = lambda _: -1.0 if type.__subclasses__(base) else 1.0  # noqa: E731
        return self._own(sign), lambda: kept.append(type("Late", (base,), {}))

    def divergence(self) -> tuple[nn.Module, Change]:
        one = type("One", (Distribution,), {"__init__": lambda self: None})
        register_kl(one, one)(lambda p, q: 1.0)
        change = lambda: register_kl(one, one)(lambda p, q: -1.0)  # noqa: E731
        return self._own(lambda _: kl_divergence(one(), one())), change  # type: ignore[arg-type,return-value]

    def table_on_a_library(self) -> tuple[nn.Module, Change]:
        table = {"sign": 1.0}
        self.patch.setattr(F, "own_table", table, raising=False)
        return self._own(lambda _: F.own_table["sign"]), lambda: table.update(sign=-1.0)  # type: ignore[attr-defined]

    def attribute_of_a_function(self) -> tuple[nn.Module, Change]:
        change = lambda: self.patch.setattr(F.softmax, "own", -1.0, raising=False)  # noqa: E731
        return self._own(lambda _: getattr(F.softmax, "own", 1.0)), change

    def attribute_of_a_class(self) -> tuple[nn.Module, Change]:
        change = lambda: self.patch.setattr(nn.Linear, "q", -1.0, raising=False)  # noqa: E731
        return self._own(lambda _: getattr(nn.Linear, "q", 1.0)), change

    def gradient_mode(self) -> tuple[nn.Module, Change]:
        """Only what runs with gradients is another thing."""

        def sign(_: nn.Module) -> float:
            return getattr(nn.Linear, "q", 1.0) if torch.is_grad_enabled() else 1.0

        return self._own(sign), self.attribute_of_a_class()[1]

    def backward_of_a_function(self) -> tuple[nn.Module, Change]:
        """A function of autograd's own whose backward looks it up."""

        class Same(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, logits: Tensor) -> Tensor:
                return logits.view_as(logits)

            @staticmethod
            def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
                return slope * getattr(nn.Linear, "q", 1.0)

        own = type("Own", (Net,), {"pull": lambda self, logits: Same.apply(logits)})
        return own(), self.attribute_of_a_class()[1]


KINDS = [name for name in vars(Kinds) if not name.startswith("_")]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_no_key_sees_show_in_slopes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, change = getattr(Kinds(tmp_path, monkeypatch), kind)()
    before = given(module)
    assert unlike(before, given(module)) == [False] * 6
    change()
    after = given(module)
    assert after.model.summary.fingerprint == before.model.summary.fingerprint
    assert torch.equal(after.logits, before.logits)
    assert unlike(before, after) == [False, True, False] * 2


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_the_kind_of_a_backward_hook_shows_in_slopes() -> None:
    """Of the older kind it is told of weight and bias too."""

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        return tuple(None if g is None else g if len(inputs) == 1 else -g for g in inputs)

    one, two = Net(), Net()
    one.last.register_full_backward_hook(hook)
    two.last.register_backward_hook(hook)
    before, after = given(one), given(two)
    assert after.model.summary.fingerprint == before.model.summary.fingerprint
    assert unlike(before, after) == [False, True, False] * 2


# --- how gradients may differ --------------------------------------------------------------------


class Pulled(Net):
    """With gradients as a function makes them of what they are."""

    def __init__(self, turn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = super().forward(inputs)
        if logits.requires_grad:
            logits.register_hook(lambda slope: self.turn(slope, inputs.detach()))
        return logits


def fails(slope: Tensor, inputs: Tensor) -> Tensor:
    raise RuntimeError("no gradient")


AT, BESIDE = [False, True, True], [False, True, True]
NEITHER = [False, False, False]
# How → what of each slope, and which figures are others then: at the samples, and beside them.
TURNS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[bool]]] = {
    "scaled": (lambda slope, inputs: 1.1 * slope, AT + BESIDE),
    "gone": (lambda slope, inputs: 0 * slope, AT + BESIDE),
    "no numbers": (lambda slope, inputs: slope / 0, AT + BESIDE),
    "fails": (fails, [True] * 6),
    "of one sample": (lambda slope, inputs: slope.index_fill(0, torch.tensor(3), 0.0), AT + BESIDE),
    "of one class": (lambda slope, inputs: slope.index_fill(1, torch.tensor(3), 0.0), AT + BESIDE),
    "by the loss": (
        lambda slope, inputs: slope if bool((slope.abs() == 1).any()) else -slope,
        [*NEITHER, False, True, False],
    ),
    "off the samples": (
        lambda slope, inputs: slope * (1.0 if bool(((inputs * 16) % 1 == 0).all()) else 0.5),
        NEITHER + BESIDE,
    ),
}


@pytest.mark.parametrize("turn", TURNS)
def test_slopes_see_every_kind_of_other_gradient(turn: str) -> None:
    change, expected = TURNS[turn]
    right, wrong = given(Pulled(lambda slope, inputs: slope)), given(Pulled(change))
    assert torch.equal(right.logits, wrong.logits)
    assert unlike(right, wrong) == unlike(wrong, right) == expected
    assert unlike(wrong, wrong) == [False] * 6


def test_slopes_of_a_linear_network_are_known() -> None:
    asked = given(Net())
    told, weights = asked.slopes(), Net().last.weight.detach()
    assert told.samples == tuple(asked.ids)
    labels = asked.labels
    rivals = asked.logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    gradient = weights[rivals] - weights[labels]
    assert told.size == pytest.approx(gradient.norm(dim=1).tolist(), rel=1e-5)
    assert all(abs(s) <= g for s, g in zip(told.slope, gradient.abs().sum(dim=1), strict=True))  # type: ignore[arg-type,operator]
    picked = asked.logits.gather(1, torch.stack([labels, rivals], dim=1))
    assert told.margin == pytest.approx((picked[:, 0] - picked[:, 1]).tolist(), rel=1e-4, abs=1e-6)
    # Another seed of signs would be another number: these stay as long as records are read.
    assert Slopes(**told.model_dump()) == told


# --- who is recognised ---------------------------------------------------------------------------


def test_roundings_of_another_machine_are_no_other_model() -> None:
    """Weights that differ in their last digits do what another machine's sums do."""
    samples = load_dataset("digits", n=12)
    for name in ("standard", "vit-pgd-at"):
        model = load_model(next(card for card in list_cards("digits") if card.card.name == name))
        told = Given.of(model, samples, range(12), CPU).slopes()
        for weights in model.parameters():
            noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
            weights.data.mul_(1 + 1e-6 * noise)
        there = Given.of(model, samples, range(12), CPU)
        assert not bool(there.rising_unlike(told)[1].any()), name
        next(model.parameters()).data.mul_(1.1)
        other = Given.of(model, samples, range(12), CPU)
        assert bool(other.rising_unlike(told)[1].any()), name


def test_where_a_slope_jumps_either_side_will_do() -> None:
    """All of an image of one grey is the largest: which of them has the gradient is arithmetic's."""

    class Largest(Net):
        def __init__(self, flipped: bool) -> None:
            super().__init__()
            self.flipped = flipped

        def forward(self, inputs: Tensor) -> Tensor:
            seen = inputs.flip(2, 3) if self.flipped else inputs
            top: Tensor = F.max_pool2d(seen, 8).flatten(1)
            return top @ torch.linspace(-1, 1, 10)[None]

    one, two = given(Largest(False)), given(Largest(True))
    assert torch.equal(one.logits, two.logits)
    assert unlike(one, two)[:3] == [False] * 3
    assert bool((one.rise.figures[:, 1] != two.rise.figures[:, 1]).any())


def test_parts_are_joined_as_all_would_have_been_asked() -> None:
    whole = load_dataset("digits", n=150)
    model = wrapped(Net())
    told = Given.of(model, whole, few_rows(whole), CPU).slopes()
    assert len(told.samples) == 64
    rows = [list(range(place, 150, 3)) for place in range(3)]
    parts = [Given.of(model, whole, some, CPU).slopes() for some in rows]
    both = joined(parts, whole.sample_ids)
    assert both is not None
    assert both.samples == told.samples
    assert both.slope == pytest.approx(told.slope, rel=1e-4)
    assert joined([parts[0], None], whole.sample_ids) is None


# --- end to end ----------------------------------------------------------------------------------


class Hidden(Net):
    """Whose gradients are turned round by what no key holds."""

    def pull(self, logits: Tensor) -> Tensor:
        return signed(logits, getattr(nn.Linear, "q", 1.0))


def evaluated(results: Path | None, suite: Suite = PGD, **fields: Any) -> Any:
    (stored,) = robench.evaluate(
        Hidden(), data(), suite, threat_model="Linf-0.1", results=results, workers=1, **fields
    )
    return stored


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("results")
    return folder, evaluated(folder)


def test_a_record_does_not_answer_for_other_gradients(
    stored: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, before = stored
    assert evaluated(folder).record == before.record
    assert not caplog.records
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    after = evaluated(folder)
    assert "its gradients on 20 of 20 clean samples are not those of the stored" in caplog.text
    assert after.record.counts["broken"] < before.record.counts["broken"]
    assert "not_reusable" in {flag.name for flag in after.record.flags}
    assert Store(folder).read(before.record.key).record == before.record


def test_a_record_without_slopes_is_made_again_and_keeps_its_figures(
    stored: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As records are that an older robench has written."""
    _, before = stored
    older = before.record.model_copy(update={"slopes": None, "created": "2020-01-01T00:00:00"})
    Store(tmp_path).write(older, before.samples)
    again = evaluated(tmp_path)
    assert "1 stored records are older than the slopes" in caplog.text
    assert again.record == older.model_copy(update={"slopes": before.record.slopes})
    caplog.clear()
    assert evaluated(tmp_path).record == again.record
    assert not caplog.records


def test_a_snapshot_goes_on_only_with_its_own_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    suite = Suite(name="long", attacks=(AttackSpec(name="pgd", attack="pgd", params={"steps": 9}),))

    class Interrupting(Listener):
        steps = 0

        def advanced(self, steps: int) -> None:
            self.steps += steps
            if self.steps > 2 * N:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, suite, listener=Interrupting())
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    again, fresh = evaluated(tmp_path, suite), evaluated(None, suite)
    assert "begins anew: its gradients on" in caplog.text
    assert again.record.counts == fresh.record.counts


def test_asking_leaves_no_trace() -> None:
    """Neither in the model nor in anybody's generators."""

    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("passes", torch.zeros(()))
            self.seen: list[int] = []

        def pull(self, logits: Tensor) -> Tensor:
            self.passes += 1
            self.seen.append(len(logits))
            return logits + 1e-3 * torch.rand_like(logits)

    model = wrapped(Counting())
    state = torch.get_rng_state()
    asked = Given.of(model, data(), few_rows(data()), CPU)
    first = asked.slopes()
    assert asked.wobble.shape == (N, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert int(model.network.passes) == 0  # type: ignore[arg-type]
    assert model.network.seen == []
    assert Given.of(model, data(), few_rows(data()), CPU).slopes() == first


def test_a_model_without_slopes_in_its_records_is_held_against_its_outputs(
    stored: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = stored
    Store(tmp_path).write(before.record.model_copy(update={"slopes": None}), before.samples)
    model = wrap_module(Hidden(), num_classes=10, input={"channels": 1}, threat_model="Linf-0.1")
    fingerprint = model.summary.fingerprint
    assert fingerprint == before.record.model.fingerprint
    monkeypatch.setattr(nn.Linear, "q", -1.0, raising=False)
    check_recognised(model, data(), Store(tmp_path), CPU)
    assert model.summary.fingerprint == fingerprint
