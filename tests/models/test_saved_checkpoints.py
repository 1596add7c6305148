"""Checkpoints as training scripts save them: what is beside the network is left out, and inert."""

from __future__ import annotations

import argparse
import array
import collections
import datetime
import decimal
import os
import pathlib
import random
import types
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaign import campaign
from combinations import one_at_a_time
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robench.errors import (
    CheckpointError,
    KeyMismatchError,
    RobenchError,
    UnsafeCheckpointError,
    UsageError,
)
from robench.models import load_checkpoint, read_checkpoint
from robench.models.wrapper import RobenchModel
from robench.records import InputSpec
from robench.request import Request
from robench.request_loading import load_requested

GREY = InputSpec(channels=1)
INPUTS = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class Features(nn.Module):
    """A network whose names have a middle."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.features(inputs).relu())


def _network(seed: int = 0) -> Features:
    torch.manual_seed(seed)
    return Features().eval()


def _load(path: Path, **fields: Any) -> RobenchModel:
    return load_checkpoint(path, f"{__name__}:Features", num_classes=3, input=GREY, **fields)


def _prefixed(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


# Prefix of the network → what else lies beside it.
BESIDE: dict[str, dict[str, Tensor]] = {
    "module.model.": {
        **_prefixed("module.attacker.model.", _network()),
        "module.normalizer.new_mean": torch.zeros(1),
    },
    "model.": {**_prefixed("ema_model.", _network(1)), "loss.weight": torch.ones(3)},
    "net.": _prefixed("teacher.", nn.Linear(2, 2)),
    "module.": {"swa_n": torch.tensor(3)},
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("prefix", BESIDE)
def test_further_modules_are_left_out_and_said(tmp_path: Path, prefix: str, named: bool) -> None:
    network = _network()
    torch.save({"net": {**_prefixed(prefix, network), **BESIDE[prefix]}}, tmp_path / "a.pt")
    model = _load(tmp_path / "a.pt", **({"prefix": prefix} if named else {}))
    torch.testing.assert_close(model(INPUTS), network(INPUTS))
    (flag,) = model.remarks
    assert (flag.name, flag.count) == ("weights_left_out", len(BESIDE[prefix]))
    assert next(iter(BESIDE[prefix])).rpartition(".")[0] in flag.evidence


def test_of_two_networks_one_has_to_be_named(tmp_path: Path) -> None:
    one, other = _network(0), _network(1)
    torch.save({**_prefixed("model.", one), **_prefixed("net.", other)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"several times, under 'model\.' and 'net\.'"):
        _load(tmp_path / "a.pt")
    model = _load(tmp_path / "a.pt", prefix="net.")
    torch.testing.assert_close(model(INPUTS), other(INPUTS))
    # A copy of the same is no question.
    torch.save({**_prefixed("model.", one), **_prefixed("net.", one)}, tmp_path / "a.pt")
    torch.testing.assert_close(_load(tmp_path / "a.pt")(INPUTS), one(INPUTS))


KEYS = {
    "equal names": (("net_a", "net_b"), "net_a", "net_b"),
    "usual names": (("state_dict", "model", "best"), "state_dict", "best"),
    "deeper": (("student.model", "teacher.model"), "student.model", "teacher.model"),
    "averages alone": (("ema", "swa"), "ema", "swa"),
}


def _nested(networks: dict[str, nn.Module]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for path, network in networks.items():
        place = content
        *above, last = path.split(".")
        for part in above:
            place = place.setdefault(part, {})
        place[last] = network.state_dict()
    return content


@pytest.mark.parametrize("name", KEYS)
def test_of_two_networks_under_two_keys_one_has_to_be_named(tmp_path: Path, name: str) -> None:
    keys, first, wanted = KEYS[name]
    networks = {key: _network(seed) for seed, key in enumerate(keys)}
    torch.save({**_nested(networks), "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"several times with different weights, at .*--weights key="
    ) as refused:
        _load(tmp_path / "a.pt")
    assert all(repr(key) in str(refused.value) for key in keys)
    for key in (first, wanted):
        model = _load(tmp_path / "a.pt", key=key)
        torch.testing.assert_close(model(INPUTS), networks[key](INPUTS))
        (flag,) = model.remarks
        assert flag.name == "weights_left_out"
        assert all(repr(other) in flag.evidence for other in keys)
    # A copy of the same is no question, nor is a network of another shape.
    torch.save(_nested(dict.fromkeys(keys, networks[first])), tmp_path / "a.pt")
    assert _load(tmp_path / "a.pt").remarks == ()
    torch.save(_nested({first: networks[first], "other": Features(7)}), tmp_path / "a.pt")
    torch.testing.assert_close(_load(tmp_path / "a.pt")(INPUTS), networks[first](INPUTS))


def test_a_request_names_the_network(tmp_path: Path) -> None:
    networks: dict[str, nn.Module] = {"net_a": _network(0), "net_b": _network(1)}
    torch.save(_nested(networks), tmp_path / "a.pt")
    request = Request(
        models=(tmp_path / "a.pt",),
        dataset=(torch.rand(4, 1, 2, 2), [0, 1, 2, 0]),
        architecture=f"{__name__}:Features",
        eps="0.1",
        weights={"key": "net_b"},
    )
    ((model, _),) = load_requested(request)
    torch.testing.assert_close(model(INPUTS), networks["net_b"](INPUTS))
    with pytest.raises(CheckpointError, match="--weights key="):
        load_requested(replace(request, weights={}))
    with pytest.raises(UsageError, match="--weights: 'kee' says nothing of where"):
        load_requested(replace(request, weights={"kee": "net_b"}))
    with pytest.raises(
        UsageError, match="--weights, --input and --forward are for weights without"
    ):
        load_requested(Request(models=("pgd-at",), weights={"key": "net_b"}))


def test_averages_come_last_and_are_said(tmp_path: Path) -> None:
    plain, average = _network(0), _network(1)
    torch.save(_nested({"model_ema": average, "model": plain}), tmp_path / "a.pt")
    model = _load(tmp_path / "a.pt")
    torch.testing.assert_close(model(INPUTS), plain(INPUTS))
    (flag,) = model.remarks
    assert (flag.name, "'model_ema'; those at 'model' were loaded" in flag.evidence) == (
        "weights_left_out",
        True,
    )
    half = {key: value.half() for key, value in average.state_dict().items()}
    torch.save({"a": plain.state_dict(), "b": half}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="'a', 'b'"):
        _load(tmp_path / "a.pt")


def test_a_network_that_lacks_something_is_not_completed_from_elsewhere(tmp_path: Path) -> None:
    state = _prefixed("model.", _network())
    del state["model.fc.bias"]
    torch.save({**state, "head.fc.bias": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(KeyMismatchError, match=r"missing from the file: fc\.bias"):
        _load(tmp_path / "a.pt", prefix="model.")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("features.", "features.module."),
        lambda name: name.replace("features.1.", "features.1._orig_mod."),
        lambda name: name.replace("fc.", "fc._fsdp_wrapped_module."),
        lambda name: "model._orig_mod." + name.replace("fc.", "fc._checkpoint_wrapped_module."),
    ],
)
def test_wrappers_names_in_the_middle_are_taken_out(
    tmp_path: Path, rename: Callable[[str], str]
) -> None:
    network = _network()
    state = {rename(name): tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    torch.testing.assert_close(_load(tmp_path / "a.pt")(INPUTS), network(INPUTS))


# --- objects beside the weights --------------------------------------------------------------


class Config:
    """A class of a training script."""

    def __init__(self) -> None:
        self.lr = 0.1


class Settings(dict[str, Any]):
    """One derived from ``dict``, as configurations of the field are."""


class Frozen:
    """One with slots."""

    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 0.1


def _settings() -> Settings:
    made = Settings(lr=0.1)
    made.path = Path("x")  # type: ignore[attr-defined]
    return made


def _generator() -> random.Random:
    return random.Random(0)


HARMLESS: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, folder=Path("x")),
    "simple namespace": types.SimpleNamespace(a=[1]),
    "path": pathlib.PurePosixPath("x"),
    "date": datetime.date(2026, 1, 1),
    "time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(seconds=3),
    "decimal": decimal.Decimal("0.1"),
    "identifier": uuid.UUID(int=3),
    "small number": np.uint8(3),
    "half number": np.float16(3),
    "text of numpy": np.str_("a"),
    "truth of numpy": np.bool_(True),
    "type of numpy": np.float32,
    "array": np.zeros((3, 2)),
    "object array": np.array(["a", None], dtype=object),
    "structured array": np.zeros(2, dtype=[("a", "i4")]),
    "generator of numpy": np.random.RandomState(0).get_state(),
    "set": {1, 2},
    "range": range(3),
    "slice": slice(1, 2),
    "queue": collections.deque([1.0, 2.0], maxlen=5),
    "default dictionary": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "array of numbers": array.array("d", [1.0]),
    "random": _generator(),
    "own class": Config(),
    "own dictionary": _settings(),
    "own slots": Frozen(),
    "several kinds": [_settings(), Frozen(), Config(), np.zeros(2), Path("x")],
    "optimiser": torch.optim.SGD([torch.ones(1)]),
}


@pytest.mark.parametrize(("name", "legacy"), one_at_a_time([*HARMLESS], [False, True]))
def test_harmless_objects_beside_the_weights_are_read_inert(
    tmp_path: Path, name: str, legacy: bool
) -> None:
    network = _network()
    content = {"state_dict": network.state_dict(), "beside": [HARMLESS[name]], "epoch": 3}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    torch.testing.assert_close(_load(tmp_path / "a.pt")(INPUTS), network(INPUTS))
    assert read_checkpoint(tmp_path / "a.pt")["epoch"] == 3


def test_nothing_of_what_is_beside_is_imported_or_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise AssertionError("it was called")

    network = _network()
    torch.save({"net": network.state_dict(), "config": Config()}, tmp_path / "a.pt")
    monkeypatch.setattr(Config, "__init__", fail)
    monkeypatch.setattr(Config, "__setattr__", fail)
    monkeypatch.setattr(Config, "__new__", fail)
    held = read_checkpoint(tmp_path / "a.pt")["config"]
    assert not isinstance(held, Config)
    assert not hasattr(held, "lr")


class Evil:
    """Pickles to a call."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_code_among_harmless_objects_is_refused(tmp_path: Path) -> None:
    content = {"net": _network().state_dict(), "config": [Config(), {"deep": Evil()}]}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"would execute code: .*system"):
        _load(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", [4, 5])
def test_whole_files_are_never_called_corrupt(tmp_path: Path, protocol: int) -> None:
    content = {"net": _network().state_dict(), "beside": HARMLESS["namespace"]}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    with pytest.raises(CheckpointError) as raised:
        _load(tmp_path / "a.pt")
    assert "in a form that cannot be read safely" in str(raised.value)
    assert "trust" not in str(raised.value)
    assert "corrupt" not in str(raised.value)


# --- builders --------------------------------------------------------------------------------


class WithNothing(Features):
    def __init__(self) -> None:
        super().__init__(3)


class WithAny(Features):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{k: v for k, v in arguments.items() if k == "num_classes"})


def build_nothing() -> nn.Module:
    return Features()


def build_classes(*, num_classes: int) -> nn.Module:
    return Features(num_classes)


def build_with_defaults(width: int = 4, in_channels: int = 1) -> nn.Module:
    assert (width, in_channels) == (4, 1)
    return Features()


@pytest.mark.parametrize(
    "builder",
    ["WithNothing", "WithAny", "build_nothing", "build_classes", "build_with_defaults"],
)
def test_builders_take_what_they_have_parameters_for(tmp_path: Path, builder: str) -> None:
    network = _network()
    torch.save(network.state_dict(), tmp_path / "a.pt")
    model = load_checkpoint(tmp_path / "a.pt", f"{__name__}:{builder}", num_classes=3, input=GREY)
    torch.testing.assert_close(model(INPUTS), network(INPUTS))


def test_arguments_of_a_builder_without_any_are_refused(tmp_path: Path) -> None:
    torch.save(_network().state_dict(), tmp_path / "a.pt")
    from robench.records import ArchitectureSpec

    spec = ArchitectureSpec(name=f"{__name__}:build_nothing", arguments={"width": 3})
    with pytest.raises(RobenchError, match=r"takes no argument 'width'. It takes: none"):
        load_checkpoint(tmp_path / "a.pt", spec, num_classes=3, input=GREY)


# --- many files ------------------------------------------------------------------------------

FILES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "key": st.sampled_from(["", "net", "state_dict", "model.ema"]),
        "prefix": st.sampled_from(["", "module.", "model.", "module.model.", "_orig_mod."]),
        "middle": st.sampled_from(["", "module.", "_orig_mod."]),
        "beside": st.lists(st.sampled_from(sorted(set(HARMLESS))), max_size=3),
        "teacher": st.booleans(),
        "half": st.booleans(),
        "legacy": st.booleans(),
        "evil": st.integers(0, 9).map(lambda number: number == 0),
    }
)


def _check_file(made: dict[str, Any], folder: Path) -> None:
    network = _network(made["seed"])
    if made["half"]:
        network = network.half().float()
    state = {
        made["prefix"] + name.replace("features.", f"features.{made['middle']}"): tensor.half()
        if made["half"]
        else tensor
        for name, tensor in network.state_dict().items()
    }
    if made["teacher"] and made["prefix"]:
        state |= _prefixed("teacher.", _network(9))
    content: Any = state
    for key in reversed(made["key"].split(".") if made["key"] else []):
        content = {key: content}
    if made["key"]:
        content["beside"] = [HARMLESS[name] for name in made["beside"]]
        content["evil"] = Evil() if made["evil"] else None
    path = folder / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not made["legacy"])
    if made["key"] and made["evil"]:
        with pytest.raises(UnsafeCheckpointError):
            _load(path)
        return
    model = _load(path)
    torch.testing.assert_close(model(INPUTS), network(INPUTS), rtol=0, atol=0)
    assert bool(model.remarks) == (made["teacher"] and bool(made["prefix"]))
    other = _network(made["seed"] + 10)
    torch.save(other.state_dict(), folder / "b.pt")
    assert _load(folder / "b.pt").summary.fingerprint != model.summary.fingerprint


@given(made=FILES)
@settings(deadline=None)
def test_what_is_read_is_what_was_saved(
    made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _check_file(made, tmp_path_factory.getbasetemp())


@campaign(made=FILES)
def test_what_is_read_of_many_files_is_what_was_saved(
    made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _check_file(made, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("prefix", ["backbone.", "1.", "student.", "models.0."])
def test_a_prefix_that_makes_all_names_fit_is_said(tmp_path: Path, prefix: str) -> None:
    network = _network()
    torch.save(_prefixed(prefix, network), tmp_path / "a.pt")
    with pytest.raises(KeyMismatchError) as raised:
        _load(tmp_path / "a.pt")
    assert f"--weights strip_prefix={prefix};" in str(raised.value)
    torch.testing.assert_close(_load(tmp_path / "a.pt", prefix=prefix)(INPUTS), network(INPUTS))


def test_of_two_such_prefixes_both_are_said(tmp_path: Path) -> None:
    content = {**_prefixed("student.", _network()), **_prefixed("teacher.", _network(1))}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(KeyMismatchError, match=r"'student\.' or 'teacher\.'"):
        _load(tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_plain_names_beside_a_prefix_are_a_network_too(tmp_path: Path, prefix: str) -> None:
    one, other = _network(0), _network(1)
    torch.save({**one.state_dict(), **_prefixed(prefix, other)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"several times, under '{prefix}' and no prefix"):
        _load(tmp_path / "a.pt")
    torch.testing.assert_close(_load(tmp_path / "a.pt", prefix=prefix)(INPUTS), other(INPUTS))
    torch.save({**one.state_dict(), **_prefixed(prefix, one)}, tmp_path / "a.pt")
    torch.testing.assert_close(_load(tmp_path / "a.pt")(INPUTS), one(INPUTS))


def test_a_list_has_keys_by_place(tmp_path: Path) -> None:
    one, other = _network(0), _network(1)
    torch.save((one.state_dict(), 0.9), tmp_path / "a.pt")
    torch.testing.assert_close(_load(tmp_path / "a.pt")(INPUTS), one(INPUTS))
    torch.save([one.state_dict(), other.state_dict()], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"at '0', '1'.*--weights key="):
        _load(tmp_path / "a.pt")
    torch.testing.assert_close(_load(tmp_path / "a.pt", key="1")(INPUTS), other(INPUTS))
