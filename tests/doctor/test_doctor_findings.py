"""Every planted fault is named; nothing is said about sound models."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from attack_models import robust_digits_network
from torch import Tensor, nn

from robench.datasets import load_dataset
from robench.doctor import Finding, examine
from robench.doctor.behaviour import randomised
from robench.doctor.subject import Subject
from robench.models import RobenchModel, list_cards, load_model, wrap_module

N = 100
ZOO = "digits/Linf-0.2/"


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits").subset(N)
    return data.batch(range(N)), data.labels


def trained() -> nn.Module:
    """A fresh copy of a small network that classifies digits in [0, 1]."""
    return copy.deepcopy(robust_digits_network())


@cache
def _of_the_zoo() -> nn.Module:
    return load_model(ZOO + "pgd-at").network


def robust() -> nn.Module:
    """A fresh copy of one that is surer of its classes."""
    return copy.deepcopy(_of_the_zoo())


def normalising() -> nn.Module:
    """A fresh copy of one that also has batch normalisation."""
    return copy.deepcopy(robust_digits_network(batch_norm=True))


class Around(nn.Module):
    """A trained network with something done to what goes in or comes out."""

    def __init__(
        self,
        inner: nn.Module,
        before: Callable[[Tensor], Tensor],
        after: Callable[[Tensor], object],
    ) -> None:
        super().__init__()
        self.inner = inner
        self.before = before
        self.after = after

    def forward(self, inputs: Tensor) -> object:
        return self.after(self.inner(self.before(inputs)))


def around(
    before: Callable[[Tensor], Tensor] = lambda x: x,
    after: Callable[[Tensor], object] = lambda z: z,
    inner: Callable[[], nn.Module] = trained,
) -> Around:
    return Around(inner(), before, after)


class StuckInTraining(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.inner.train()

    def train(self, mode: bool = True) -> StuckInTraining:
        self.training = False
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs)


class Counting(nn.Module):
    calls: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(inputs)


class AfterCalls(nn.Module):
    """Turns its pictures round once it has been asked a thousand times."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.left = 1000

    def forward(self, inputs: Tensor) -> Tensor:
        self.left -= 1
        return self.inner(inputs if self.left >= 0 else inputs.flip(2))


class Remembering(nn.Module):
    """Answers what is like an input that it was asked before as it did then."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen = torch.empty(0, 1, 8, 8)
        self.said = torch.empty(0, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        answers = []
        for picture, logits in zip(inputs.detach(), self.inner(inputs), strict=True):
            near = (self.seen - picture).abs().flatten(1).amax(dim=1) < 0.2
            if bool(near.any()):
                answers.append(self.said[near][0] + 0 * logits)
            else:
                self.seen = torch.cat([self.seen, picture[None]])
                self.said = torch.cat([self.said, logits.detach()[None]])
                answers.append(logits)
        return torch.stack(answers)


class FifthRaises(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 5 == 0:
            raise RuntimeError("busy")
        return self.inner(inputs)


class BatchStatistics(nn.Module):
    """Normalises with the statistics of the batch, also in evaluation mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False, track_running_stats=False)
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(0.3 + 0.37 * self.norm(inputs))


class FreshNorm(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(self.norm(inputs))


class Straight(torch.autograd.Function):
    """The identity, whose gradient points the wrong way."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Colour(nn.Module):
    """Reads a colour image whose digit is in red and its negative in blue."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner((inputs[:, :1] + 1 - inputs[:, 2:]) / 2)


class Large(nn.Module):
    """Computes through values that float16 does not hold."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner((inputs * 1e6) / 1e6)


def optimises(logits: Tensor) -> Tensor:
    with torch.enable_grad():
        shift = torch.zeros_like(logits, requires_grad=True)
        torch.autograd.grad((logits + shift).square().sum(), shift)
    return logits


def colourful(grey: Tensor) -> Tensor:
    return torch.cat([grey, torch.full_like(grey, 0.5), 1 - grey], dim=1)


def initialised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def sick_weights() -> nn.Module:
    network = trained()
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = torch.nan
    return network


def some_nan(logits: Tensor) -> Tensor:
    return torch.where(logits.argmax(dim=1, keepdim=True) == 3, torch.nan, logits)


def in_place(inputs: Tensor) -> Tensor:
    return inputs.clamp_(0.1, 0.9)


ORDER = torch.tensor([3, 1, 2, 0, 4, 5, 6, 7, 9, 8])
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}


@dataclass
class Fault:
    """How to plant a fault, what it is called, and what its report must say."""

    network: Callable[[], nn.Module]
    name: str
    says: str
    card: dict[str, object] | None = None
    inputs: Callable[[Tensor], Tensor] = lambda x: x
    labels: Callable[[Tensor], Tensor] = lambda y: y
    classes: int = 10


FAULTS = {
    "probabilities": Fault(
        lambda: around(after=lambda z: z.softmax(1)), "softmax_outputs", "sum to 1"
    ),
    "log-probabilities": Fault(
        lambda: around(after=lambda z: z.log_softmax(1)), "log_softmax_outputs", "log-prob"
    ),
    "sigmoids": Fault(lambda: around(after=torch.sigmoid), "sigmoid_outputs", "sigmoid"),
    "a tuple": Fault(
        lambda: around(after=lambda z: (z.mean(), z)), "output_path", "[forward] output = [1]"
    ),
    "a dict": Fault(
        lambda: around(after=lambda z: {"features": z[:, :3], "logits": z}),
        "output_path",
        '[forward] output = ["logits"]',
    ),
    "other classes": Fault(trained, "num_classes", "num_classes = 10", classes=7),
    "no matrix": Fault(lambda: around(after=lambda z: z.sum()), "no_logits", "shapes: ()"),
    "another size": Fault(
        initialised, "forward_fails", "RuntimeError", inputs=lambda x: x[:, :, :5]
    ),
    "stuck in training": Fault(lambda: StuckInTraining(normalising()), "train_mode", "inner"),
    "statistics that move": Fault(
        lambda: StuckInTraining(normalising()), "changing_state", "running_mean"
    ),
    "a counter": Fault(lambda: Counting(trained()), "changing_state", "calls"),
    "another after a thousand calls": Fault(
        lambda: AfterCalls(trained()), "history_dependent", "counters (left)"
    ),
    "a memory": Fault(
        lambda: Remembering(trained()), "history_dependent", "after an input like it"
    ),
    "dropout": Fault(
        lambda: around(after=nn.functional.dropout, inner=robust), "randomised", "--draws"
    ),
    "noise": Fault(
        lambda: around(before=lambda x: x + 0.1 * torch.randn_like(x)), "randomised", "passes"
    ),
    "batch statistics": Fault(
        lambda: BatchStatistics(trained()), "batch_dependent", "track_running_stats"
    ),
    "centred logits": Fault(
        lambda: around(after=lambda z: z - z.mean(0)), "batch_dependent", "when the batch"
    ),
    "squeezed": Fault(
        lambda: around(after=lambda z: z.squeeze()), "fails_on_single_inputs", "flatten"
    ),
    "adapting": Fault(lambda: around(after=optimises), "dynamic", "grad"),
    "fresh normalisation": Fault(lambda: FreshNorm(trained()), "untrained_batch_norm", "norm"),
    "detached": Fault(lambda: around(before=lambda x: x.detach()), "no_gradients", "detach"),
    "rounded": Fault(lambda: around(before=lambda x: (8 * x).round() / 8), "flat_margin", "square"),
    "saturated": Fault(
        lambda: around(after=lambda z: 1e3 * z), "vanishing_gradients", "cross-entropy"
    ),
    "faint": Fault(lambda: around(after=lambda z: 1e-14 * z), "vanishing_gradients", "scale"),
    "root at zero": Fault(
        lambda: around(before=lambda x: x + 0 * (x - x).abs().sqrt()), "nan_gradients", "NaN"
    ),
    "reversed gradient": Fault(
        lambda: around(before=Straight.apply), "gradient_mismatch", "straight-through"
    ),
    "a detached half": Fault(
        lambda: around(before=lambda x: 0.3 * x + 0.7 * x.detach()), "gradient_mismatch", "slope"
    ),
    "expects [-1, 1]": Fault(
        lambda: around(lambda x: (x + 1) / 2, inner=normalising),
        "input_reading",
        "--input low=-1.0",
    ),
    "expects [0, 255]": Fault(
        lambda: around(before=lambda x: x / 255), "input_reading", "high = 255.0"
    ),
    "expects a mean": Fault(
        lambda: around(lambda x: x * 0.3081 + 0.1307, inner=normalising),
        "input_reading",
        "mean = [0.1307]",
    ),
    "card normalises": Fault(
        normalising, "input_reading", "Take the range", card={"mean": [0.5], "std": [0.5]}
    ),
    "card in [0, 255]": Fault(normalising, "input_reading", "Take the range", card={"high": 255.0}),
    "a mean of 8 bits": Fault(
        trained, "normalisation_units", "mean 127.5 cannot be those of", card={"mean": [127.5]}
    ),
    "blue first": Fault(
        lambda: Colour(robust()),
        "input_reading",
        "BGR",
        inputs=lambda x: colourful(x).flip(1),
        card={"channels": 3},
    ),
    "colour mean": Fault(
        lambda: Colour(normalising()),
        "input_reading",
        "Take the range",
        inputs=colourful,
        card={"channels": 3, **CIFAR},
    ),
    "classes in another order": Fault(
        lambda: around(after=lambda z: z[:, ORDER]), "class_order", "output 0 is class 3"
    ),
    "two classes swapped": Fault(
        trained, "class_order", "folders", labels=lambda y: torch.where(y > 7, 17 - y, y)
    ),
    "labels from one": Fault(trained, "labels_out_of_range", "subtract 1", labels=lambda y: y + 1),
    "labels of other data": Fault(trained, "labels_out_of_range", "to 90", labels=lambda y: 10 * y),
    "untrained": Fault(initialised, "accuracy_near_chance", "chance: 10.0"),
    "constant": Fault(
        lambda: around(after=lambda z: z * 0 + torch.arange(10.0)), "constant_outputs", "differ"
    ),
    "shifted": Fault(lambda: around(after=lambda z: z + 1e6), "coarse_margins", "1e+06"),
    "collapsed": Fault(
        lambda: around(after=lambda z: z + 1e3 * torch.eye(10)[4], inner=normalising),
        "one_class_predicted",
        "class 4",
    ),
    "NaN weights": Fault(sick_weights, "nonfinite_logits", "weight"),
    "NaN for some": Fault(lambda: around(after=some_nan), "nonfinite_logits", "divisions"),
    "beyond float16": Fault(lambda: Large(trained()), "fp16_overflow", "1e+06"),
    "weights beyond float16": Fault(
        lambda: nn.Sequential(trained(), Scaled()), "fp16_overflow", "1.scale"
    ),
}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1e5))

    def forward(self, logits: Tensor) -> Tensor:
        return logits * (self.scale / 1e5)


def plant(fault: Fault) -> tuple[RobenchModel, Tensor, Tensor]:
    grey, labels = digits()
    card = fault.card or {"channels": 1}
    model = wrap_module(
        fault.network(), num_classes=fault.classes, input={"channels": 1, **card}, share=True
    )
    return model, fault.inputs(grey), fault.labels(labels)


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


# Where one fault has several marks, all of them are its own; these have no others.
ALONE: dict[str, set[str]] = {
    **{
        planted: set[str]()
        for planted in (
            *("log-probabilities", "a tuple", "a dict", "a counter", "adapting", "in place"),
            *("detached", "reversed gradient", "expects [-1, 1]", "expects [0, 255]"),
            *("expects a mean", "blue first", "classes in another order", "untrained"),
            *("two classes swapped", "beyond float16", "weights beyond float16"),
            "another after a thousand calls",
        )
    },
    "probabilities": {"vanishing_gradients"},
    # Two passes that differ also differ in other company, and have no slope.
    "dropout": {"gradient_mismatch"},
    "noise": {"gradient_mismatch"},
    "card in [0, 255]": {"vanishing_gradients", "gradient_mismatch"},
}


@pytest.mark.parametrize(
    "brief", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "brief"]
)
@pytest.mark.parametrize("planted", FAULTS)
def test_the_planted_fault_is_named(planted: str, brief: bool) -> None:
    fault = FAULTS[planted]
    found = by_name(examine(*plant(fault), brief=brief))
    assert fault.name in found, found
    finding = found[fault.name]
    assert fault.says in finding.flag().evidence
    assert finding.mend
    assert "check_failed" not in found
    if planted in ALONE and not brief:
        assert set(found) <= {fault.name} | ALONE[planted]


def test_refusals_are_counted() -> None:
    model = wrap_module(FifthRaises(trained()), num_classes=10, input={"channels": 1}, share=True)
    inputs, labels = digits()
    found = by_name(examine(model, inputs[:8], labels[:8]))
    assert found["raises"].count in (3, 4)
    assert "16 passes over the same inputs raise: RuntimeError: busy" in found["raises"].evidence


def test_noise_that_changes_the_length_of_logits_alone_is_seen() -> None:
    class Unsteady(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            height = inputs.flatten(1).sum(dim=1) + 0.1 * torch.rand(len(inputs))
            return torch.stack((height, -height), dim=1)

    model = wrap_module(Unsteady(), num_classes=2, input={"channels": 1})
    subject = Subject(model, torch.ones(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))
    assert [finding.name for finding in randomised(subject)] == ["randomised"]


# One of each architecture; before a run, pgd-at below.
QUICK = {"standard", "vit-pgd-at"}


@pytest.mark.parametrize(
    ("located", "brief"),
    [
        pytest.param(
            located,
            brief,
            marks=[pytest.mark.slow] if brief or located.card.name not in QUICK else [],
            id=f"{located.card.name}-{brief}",
        )
        for located in list_cards("digits")
        for brief in (False, True)
    ],
)
def test_nothing_is_found_on_the_zoo(located, brief: bool) -> None:
    assert examine(load_model(located), *digits(), brief=brief) == []


@pytest.mark.parametrize(
    "n", [1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 10, 50))]
)
def test_few_samples_raise_no_suspicion(n: int) -> None:
    inputs, labels = digits()
    assert examine(load_model(ZOO + "standard"), inputs[:n], labels[:n]) == []


def test_no_label_is_a_class() -> None:
    inputs, labels = digits()
    found = by_name(examine(load_model(ZOO + "standard"), inputs, labels + 10, data_classes=20))
    assert set(found) == {"labels_out_of_range", "num_classes"}
    assert found["labels_out_of_range"].count == N


def test_data_of_one_class_flatter_no_reading() -> None:
    """A reading under which everything looks like the one class explains nothing."""
    inputs, labels = digits()
    model = load_model(ZOO + "standard")
    for label in (0, 1, 8):
        rows = labels == label
        found = by_name(examine(model, inputs[rows], labels[rows]))
        assert "input_reading" not in found
        assert "class_order" not in found


ON_FEWER = {
    *("changing_state", "history_dependent", "randomised", "batch_dependent", "no_gradients"),
    *("flat_margin", "vanishing_gradients", "nan_gradients", "gradient_mismatch", "fp16_overflow"),
}
"""Found on fewer samples before a run; all others on as many of these N, but for known logits"""
KNOWN_ALREADY = {"a dict", "card normalises", "NaN for some"}
FIRST = {fault.name: planted for planted, fault in reversed(FAULTS.items())}
QUICK_BEFORE = {FIRST[name] for name in ON_FEWER} | KNOWN_ALREADY


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=planted, marks=[] if planted in QUICK_BEFORE else [pytest.mark.slow])
        for planted, fault in FAULTS.items()
    ],
)
def test_the_planted_fault_is_named_before_a_run(fault: Fault) -> None:
    """Briefly, and with the logits that are known by then, unless the model has none."""
    model, inputs, labels = plant(fault)
    known = None
    with contextlib.suppress(Exception), torch.no_grad():
        known = model(inputs.clone()).float()
    assert fault.name in by_name(examine(model, inputs, labels, brief=True, logits=known))


def test_before_a_run_a_sound_model_sees_few_inputs() -> None:
    model = load_model(ZOO + "pgd-at")
    inputs, labels = digits()
    asked = []
    model.network.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))
    known = model(inputs).detach()
    asked.clear()
    assert examine(model, inputs, labels, brief=True, logits=known) == []
    # 72 for the slopes, 56 for what it remembers, 40 for randomness, 24 beside others and alone; each a forward pass of
    # what may be a large network.
    assert sum(asked) < 200


def test_a_mend_mends() -> None:
    """What the doctor says to write in the card leaves nothing to find."""
    fault = FAULTS["expects a mean"]
    _, inputs, labels = plant(fault)
    card = {"channels": 1, "mean": [0.1307], "std": [0.3081]}
    assert examine(wrap_module(fault.network(), num_classes=10, input=card), inputs, labels) == []
    fault = FAULTS["a dict"]
    healed = wrap_module(
        fault.network(),
        num_classes=10,
        input={"channels": 1},
        forward={"output": ["logits"]},
        share=True,
    )
    assert examine(healed, inputs, labels) == []


def test_the_model_is_left_as_it_was() -> None:
    model, inputs, labels = plant(FAULTS["statistics that move"])
    network = model.network
    assert isinstance(network, StuckInTraining)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept, random = inputs.clone(), torch.random.get_rng_state()
    examine(model, inputs, labels)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert network.inner.training
    assert torch.equal(inputs, kept)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_operations_in_place_are_no_fault_and_do_not_reach_the_samples() -> None:
    model, inputs, labels = plant(Fault(lambda: around(before=in_place), "", ""))
    kept = inputs.clone()
    assert examine(model, inputs, labels) == []
    assert torch.equal(inputs, kept)


def test_a_check_that_cannot_be_made_is_said() -> None:
    class Fussy(nn.Module):
        """Fails in the backward pass."""

        def forward(self, inputs: Tensor) -> Tensor:
            if inputs.requires_grad:
                raise RuntimeError("no gradients here")
            return inputs.flatten(1)[:, :10]

    found = by_name(examine(wrap_module(Fussy(), num_classes=10, input={"channels": 1}), *digits()))
    assert "no gradients here" in found["check_failed"].evidence


def test_programs_can_be_examined(tmp_path) -> None:
    import warnings

    inputs, labels = digits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(trained().eval(), inputs[:2], check_trace=False)
        model = wrap_module(script, num_classes=10, input={"channels": 1}, share=True)
        assert examine(model, inputs, labels) == []
