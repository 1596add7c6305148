"""Modules of users' own: what they return, their precision, their wrappers, whether they fit."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from invoke_cli import invoke
from torch import Tensor, nn

import robench
from robench.datasets import load_dataset
from robench.errors import ModelError
from robench.models import build_architecture, wrap_module
from robench.records import ArchitectureSpec, AttackSpec, PreprocessingSpec, Suite
from robench.request import Request
from robench.request_loading import load_requested

pytestmark = pytest.mark.usefixtures("unexamined")

N = 4
SHORT = Suite(name="short", attacks=(AttackSpec(name="pgd-2", attack="pgd", params={"steps": 2}),))


class Net(nn.Module):
    """A linear network for the digits; always the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Any:
        return self.fc(inputs.flatten(1))


class ModelOutput(OrderedDict[str, Any]):
    """As Hugging Face's: keys, numbers, and attributes."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else list(self.values())[key]

    __getattr__ = __getitem__


Pair = namedtuple("Pair", ["hidden", "logits"])


@dataclass
class Data:
    hidden: Tensor
    logits: Tensor


class Slots:
    __slots__ = ("hidden", "logits")

    def __init__(self, hidden: Tensor, logits: Tensor) -> None:
        self.hidden, self.logits = hidden, logits


MAKE: dict[str, Any] = {
    "dictionary": lambda hidden, logits: {"hidden": hidden, "logits": logits},
    "model output": lambda hidden, logits: ModelOutput(hidden=hidden, logits=logits),
    "named tuple": Pair,
    "dataclass": Data,
    "slots": Slots,
    "nested": lambda hidden, logits: {"logits": [hidden, (logits,)]},
}


class Returns(Net):
    """The linear network's logits inside of something."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.make = MAKE[kind]

    def forward(self, inputs: Tensor) -> Any:
        return self.make(inputs, super().forward(inputs))


def _counts(module: nn.Module, data: Any = None, **fields: Any) -> dict[str, int]:
    data = load_dataset("digits", n=N) if data is None else data
    fields = {"input": {"channels": 1}, "workers": 1, "threat_model": "Linf-0.1"} | fields
    records = robench.evaluate(module, data, SHORT, **fields)
    return {r.record.attack.name: r.record.count("survived") for r in records}


@cache
def _plain_counts() -> dict[str, int]:
    return _counts(Net())


@pytest.mark.parametrize("kind", MAKE)
def test_logits_inside_of_something_are_named_by_one_argument(kind: str) -> None:
    path = ["logits", 1, 0] if kind == "nested" else "logits"
    assert _counts(Returns(kind), forward={"output": path}) == _plain_counts()


@pytest.mark.parametrize("kind", ["dictionary", "model output", "named tuple", "dataclass"])
def test_the_message_says_what_to_write(kind: str) -> None:
    with pytest.raises(ModelError) as raised:
        _counts(Returns(kind))
    assert "forward={'output': ['logits']}" in str(raised.value)
    assert "--forward output=logits" in str(raised.value)
    assert "'hidden', 'logits'" in str(raised.value)


NETWORK = """import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
    def forward(self, inputs):
        return {"hidden": inputs, "logits": self.fc(inputs.flatten(1))}
"""


def test_one_option_says_where_the_logits_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "returns_a_dictionary.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(Net().state_dict(), tmp_path / "own.pt")
    words = ["run", str(tmp_path / "own.pt"), "--arch", "returns_a_dictionary:Net", "--eps", "0.1"]
    words += ["--dataset", "digits", "--n", "20", "--suite", "quick", "--no-plots"]
    words += ["--results", str(tmp_path / "results")]
    refused = invoke(*words)
    assert refused.code == 2
    assert "--forward output=logits" in refused.err
    assert invoke(*words, "--forward", "output=logits").code == 0


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("part", ["whole", "mixed"])
def test_other_precisions_are_refused_by_name(dtype: torch.dtype, part: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10))
    (module if part == "whole" else module[2]).to(dtype)
    with pytest.raises(ModelError, match=rf"in {dtype} and fails.*\.float\(\)") as raised:
        _counts(module)
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_module_that_casts_for_itself_is_evaluated(dtype: torch.dtype) -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net().to(dtype)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs.to(dtype)).float()

    expected = _plain_counts()
    if dtype is torch.float64:
        assert _counts(Casting()) == expected
    else:
        assert _counts(Casting()).keys() == expected.keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    module, data = Net(), load_dataset("digits", n=N)
    expected = _plain_counts(), _counts_of_zoo()
    torch.set_default_dtype(dtype)
    try:
        seen = _counts(module, data), _counts_of_zoo.__wrapped__()
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == expected


@cache
def _counts_of_zoo() -> list[dict[str, int]]:
    records = robench.evaluate("digits/Linf-0.2/pgd-at", "digits", SHORT, n=N, workers=1)
    return [dict(stored.record.counts) for stored in records]


# --- wrappers --------------------------------------------------------------------------------


def _wrappers() -> dict[str, Any]:
    def in_place(module: nn.Module) -> nn.Module:
        module.compile(backend="eager")
        return module

    return {
        "compiled": lambda module: torch.compile(module, backend="eager"),
        "compiled in place": in_place,
        "data parallel": nn.DataParallel,
        "both": lambda module: torch.compile(nn.DataParallel(module), backend="eager"),
    }


@pytest.mark.parametrize("how", list(_wrappers()))
def test_a_wrapped_module_is_evaluated_as_the_module(how: str) -> None:
    plain = _look(_network())
    assert plain[1] is not None
    assert _look.__wrapped__(_wrappers()[how](copy.deepcopy(_network()))) == plain


@cache
def _network() -> nn.Module:
    return robench.load_model("digits/Linf-0.2/pgd-at").network


@cache
def _look(module: nn.Module) -> Any:
    data = load_dataset("digits", n=N)
    record = robench.evaluate(
        module, data, SHORT, threat_model="Linf-0.2", input={"channels": 1}, workers=1
    )[0].record
    return record.counts, record.attention_method, sorted(record.metrics), record.key


# --- fit -------------------------------------------------------------------------------------


class Watched(Net):
    """Counts its passes, and does what ``how`` says with inputs that do not please it."""

    passes = 0

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "classes":
            self.fc = nn.Linear(64, 7)
        elif how == "channels":
            self.conv = nn.Conv2d(3, 1, 1)
        elif how == "size":
            self.fc = nn.Linear(100, 10)
        elif how == "double":
            self.double()

    def forward(self, inputs: Tensor) -> Any:
        Watched.passes += 1
        if self.how == "one alone" and len(inputs) == 1:
            raise ValueError("expected more than 1 value per channel")
        if self.how == "channels":
            inputs = self.conv(inputs)
        logits = super().forward(inputs)
        if self.how == "squeezed":
            logits = logits.squeeze()
        return logits * torch.nan if self.how == "not finite" else logits


@pytest.mark.parametrize(
    "how", ["classes", "channels", "size", "double", "squeezed", "one alone", "not finite"]
)
def test_what_cannot_fit_is_found_out_in_two_passes(how: str) -> None:
    Watched.passes = 0
    with pytest.raises(ModelError) as raised:
        _counts(Watched(how))
    assert str(raised.value).count("\n") == 0
    assert 1 <= Watched.passes <= 2


def test_a_module_that_fails_on_some_samples_is_evaluated() -> None:
    class Fussy(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            if bool((inputs == dark).flatten(1).all(dim=1).any()):
                raise ValueError("too dark")
            return super().forward(inputs)

    dark = load_dataset("digits", n=N).batch([0])
    assert sum(_counts(Fussy()).values()) >= 0


@pytest.mark.parametrize("how", ["zoo", "wrapped"])
def test_a_network_that_was_changed_after_loading_is_another_one(tmp_path: Path, how: str) -> None:
    model = robench.load_model("digits/Linf-0.2/pgd-at")
    if how == "wrapped":
        model = wrap_module(model.network, num_classes=10, input={"channels": 1}, share=True)
    data = load_dataset("digits", n=N)

    def look() -> Any:
        fields = {"threat_model": "Linf-0.2", "results": tmp_path, "workers": 1}
        record = robench.evaluate(model, data, SHORT, **fields)[0].record
        return record.key, {flag.name for flag in record.flags} & {"changed_since_loaded"}

    plain = look()
    assert look() == plain == (plain[0], set())
    with torch.no_grad():
        next(model.network.parameters()).mul_(-1)
    changed = look()
    assert changed[0] != plain[0]
    assert changed[1] == {"changed_since_loaded"}
    model.network.register_forward_hook(lambda _m, _i, out: -out)
    assert look()[0] not in (plain[0], changed[0])


# --- what is not known of it -----------------------------------------------------------------


def _remarks(model: Any, **fields: Any) -> list[str]:
    data = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    request = Request(models=[model], dataset=data, num_classes=3, eps="8/255", **fields)
    ((loaded, _),) = load_requested(request)
    return [flag.name for flag in loaded.remarks]


@pytest.mark.parametrize("library", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_a_network_of_a_library_without_its_normalisation_is_said(
    tmp_path: Path, library: str
) -> None:
    network = build_architecture(ArchitectureSpec(name=library), 3, 3)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    path = tmp_path / "a.pt"
    assert _remarks(path, architecture=library) == ["normalisation_unknown"]
    assert _remarks(path, architecture=library, input={"mean": 0.5, "std": 0.25}) == []


def test_images_that_were_prepared_in_another_way_are_said() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    spec = PreprocessingSpec(resize=256, crop=224)
    assert _remarks(wrap_module(module, num_classes=3, preprocessing=spec)) == [
        "other_preprocessing"
    ]
    assert _remarks(wrap_module(module, num_classes=3)) == []
