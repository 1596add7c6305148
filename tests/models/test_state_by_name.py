"""Code that looks things up by name, and operators: their models' records are not found again."""

# ruff: noqa: SIM115

from __future__ import annotations

import builtins
import dataclasses
import importlib
import io
import os
import sys
import types
from collections.abc import Callable, Iterator
from os import environ as surroundings
from os import getenv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robench.models.code_identity import code_identity

GAIN = 2.0


def helper(path: str) -> Any:
    """Reads a file for whoever calls it."""
    return torch.load(path)


def relayed(path: str) -> Any:
    return helper(path)


class Holder:
    """Reads a file when it is made."""

    def __init__(self) -> None:
        self.content = Path("gain").read_bytes()


FORWARDS: dict[str, Callable[..., Any]] = {
    "os.environ": lambda self, x: x * float(os.environ["GAIN"]),
    "os.environ under another name": lambda self, x: x * float(surroundings["GAIN"]),
    "os.getenv": lambda self, x: x * float(getenv("GAIN", "1")),
    "globals": lambda self, x: x * globals()["GAIN"],
    "eval": lambda self, x: x * eval("GAIN"),
    "open": lambda self, x: x * float(open("gain").read()),
    "io.open": lambda self, x: x * float(io.open("gain").read()),  # noqa: UP020
    "builtins.open": lambda self, x: x * float(builtins.open("gain").read()),
    "torch.load": lambda self, x: x * torch.load("gain"),
    "numpy.load": lambda self, x: x * float(np.load("gain")),
    "read_text": lambda self, x: x * float(Path("gain").read_text()),
    "two helpers": lambda self, x: x * relayed("gain"),
    "an object made meanwhile": lambda self, x: x * len(Holder().content),
    "__annotations__": lambda self, x: x * type(self).__annotations__["gain"],
    "dataclasses.fields": lambda self, x: x * dataclasses.fields(self)[0].metadata["gain"],
    "sys.modules": lambda self, x: x * sys.modules["config_of_test"].GAIN,
    "importlib": lambda self, x: x * importlib.import_module("config_of_test").GAIN,
    "a method": lambda self, x: self.look(x),
    "inside": lambda self, x: x * sum(float(os.environ[name]) for name in ("GAIN",)),
}


class Base(nn.Module):
    def look(self, inputs: Tensor) -> Tensor:
        return inputs * float(os.environ["GAIN"])


def reasons(thing: Any) -> tuple[str, ...]:
    first, second = code_identity(thing), code_identity(thing)
    assert (first == second) == (not first.unique_because)
    return first.unique_because


@pytest.mark.parametrize("kind", FORWARDS)
def test_what_forward_finds_by_name_makes_its_key_unique(kind: str) -> None:
    module = type("Own", (Base,), {"forward": FORWARDS[kind]})()
    (reason,) = reasons(module)
    assert "finds by" in reason


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module of the user's own with a number."""
    (tmp_path / "config_of_test.py").write_text("GAIN = 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module("config_of_test")
    del sys.modules["config_of_test"]


@pytest.mark.parametrize(
    "body",
    [
        "getattr(config_of_test, self.name)",
        "vars(config_of_test)[self.name]",
        "config_of_test.__dict__[self.name]",
        "first([config_of_test]).GAIN",
    ],
)
def test_a_module_of_the_users_is_not_searched_by_name(config: types.ModuleType, body: str) -> None:
    space: dict[str, Any] = {"config_of_test": config, "first": next, "__name__": __name__}
    exec(f"def forward(self, x):\n    return x * {body}", space)
    own = type("Own", (nn.Module,), {"forward": space["forward"], "name": "GAIN"})
    assert "config_of_test" in reasons(own())[0] or "__dict__" in reasons(own())[0]


def test_a_module_of_the_users_in_an_attribute_is_what_it_holds(config: Any) -> None:
    class Own(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.settings.GAIN

    module = Own()
    module.settings = config
    before = code_identity(module)
    assert code_identity(module) == before
    assert not before.unique_because
    config.GAIN = 3.0
    assert code_identity(module) != before


class Files(torch.utils.data.Dataset[Any]):
    """A data set of the same script."""

    def __getitem__(self, index: int) -> Any:
        return np.load(f"{index}.npy")


class Ordinary(nn.Module):
    """What many projects do: files and variables are read while the network is made."""

    names: dict[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.debug = os.environ.get("DEBUG") == "1"
        self.act = "relu"
        self.fc = nn.Linear(4, 3)
        self.parts = nn.ModuleList([nn.Linear(3, 3)])

    @classmethod
    def from_file(cls, path: str) -> Ordinary:
        """With the weights of a file."""
        network = cls()
        network.load_state_dict(torch.load(path))
        return network

    def fit(self) -> None:
        for batch in torch.utils.data.DataLoader(Files()):
            print(eval("batch"), batch)

    def load_state_dict(self, *arguments: Any, **names: Any) -> Any:
        print(open("log").read())
        return super().load_state_dict(*arguments, **names)

    def forward(self, inputs: Tensor) -> Tensor:
        """Names of torch's, and of its own."""
        hidden = getattr(nn.functional, self.act)(self.fc(inputs.flatten(1)))
        for name in ("parts",):
            hidden = getattr(self, name)[0](hidden)
        self.eval()
        return torch.ops.aten.relu(hidden) + vars(self)["training"]


def test_what_is_read_while_a_network_is_made_is_no_reason() -> None:
    assert reasons(Ordinary()) == ()


# --- operators -----------------------------------------------------------------------------------


def calling(operator: str) -> nn.Module:
    space: dict[str, Any] = {"torch": torch, "__name__": __name__}
    exec(f"def forward(self, x):\n    return torch.ops.{operator}(x)", space)
    return type("Own", (nn.Module,), {"forward": space["forward"]})()


def twice(inputs: Tensor) -> Tensor:
    return 2 * inputs


def thrice(inputs: Tensor) -> Tensor:
    return 3 * inputs


def defined(name: str, function: Callable[[Tensor], Tensor]) -> Any:
    return torch.library.custom_op(f"robench_test::{name}", mutates_args=())(function)


def test_an_operators_python_code_is_in_the_key() -> None:
    operator = defined("scale", twice)
    before = code_identity(calling("robench_test.scale"))
    assert not before.unique_because
    operator.register_kernel("cpu")(thrice)
    after = code_identity(calling("robench_test.scale"))
    assert after != before
    assert not after.unique_because
    module = nn.Sequential()
    module.kept = [operator, torch.ops.robench_test.scale]
    assert code_identity(module) == code_identity(module)


@pytest.mark.slow
def test_an_operator_keeps_its_key_when_it_is_called() -> None:
    defined("called", twice)
    before = code_identity(calling("robench_test.called"))
    calling("robench_test.called")(torch.ones(2))  # loads the compiler
    assert code_identity(calling("robench_test.called")) == before


def test_an_operator_without_code_to_look_into_makes_the_key_unique() -> None:
    library = torch.library.Library("robench_hidden", "FRAGMENT")
    library.define("scale(Tensor x) -> Tensor")
    library.impl("scale", twice, "CPU")
    for thing in (
        calling("robench_hidden.scale"),
        calling("robench_hidden.scale.default"),
        [torch.ops.robench_hidden.scale],
        [torch.ops.robench_hidden],
    ):
        (reason,) = reasons(thing)
        assert "operator robench_hidden::scale" in reason
    own = defined("late", twice)
    torch.library.impl("robench_test::late", "CUDA")(thrice)
    assert "operator robench_test::late" in reasons([own])[0]


def test_an_operator_of_torchs_that_was_replaced_makes_every_key_unique() -> None:
    library = torch.library.Library("aten", "IMPL")
    library.impl("hardshrink", twice, "CPU")
    assert "aten/hardshrink" in reasons(nn.ReLU())[0]
    library._destroy()  # type: ignore[no-untyped-call]
    assert reasons(nn.ReLU()) == ()


def test_what_torch_registers_itself_is_no_reason() -> None:
    """At the first vmap it gives some of its operators Python code."""
    before = code_identity(nn.Linear(2, 2).weight.detach())
    torch.func.vmap(torch.square)(torch.ones(2, 2))
    after = code_identity(nn.Linear(2, 2).weight.detach())
    assert before.unique_because == after.unique_because == ()
