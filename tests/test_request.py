"""One request, however it is asked: the command line, the API and a pickle say the same."""

from __future__ import annotations

import pickle
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from invoke_cli import invoke
from torch import nn

import robench
from robench.api import Prepared, prepare
from robench.attacks.suites import load_suite
from robench.cli.main import app
from robench.datasets import load_dataset
from robench.errors import AttackError, CardError, DataError, ModelError, RobenchError, UsageError
from robench.evaluation.prepared_model import Settings
from robench.models import wrap_module
from robench.request import Request
from robench.request_loading import choose_models

pytestmark = pytest.mark.usefixtures("unexamined")

MODEL = "digits/Linf-0.2/pgd-at"

TYPED: dict[str, tuple[list[str], Any]] = {
    "models": (["pgd-at"], ("pgd-at",)),
    "dataset": (["--dataset", "images"], "images"),
    "split": (["--split", "val"], "val"),
    "data_root": (["--data-root", "data"], Path("data")),
    "dataset_options": (["--dataset-option", "size=32"], {"size": 32}),
    "download": (["--download"], True),
    "suite": (["--suite", "quick"], "quick"),
    "settings": (["--set", "pgd-20.steps=3"], {"pgd-20.steps": 3}),
    "n": (["--n", "7"], 7),
    "norm": (["--norm", "L2"], "L2"),
    "eps": (["--eps", "1/2"], "1/2"),
    "goal": (["--goal", "targeted"], "targeted"),
    "targets": (["--targets", "next"], "next"),
    "seed": (["--seed", "3"], 3),
    "architecture": (["--arch", "resnet18"], "resnet18"),
    "architecture_arguments": (["--arch-arg", "width=16"], {"width": 16}),
    "weights": (["--weights", "key=1"], {"key": "1"}),
    "input": (["--input", "high=255"], {"high": 255}),
    "forward": (["--forward", "output=logits"], {"output": "logits"}),
    "trust_pickle": (["--trust-pickle"], True),
    "trust_code": (["--trust-code"], True),
    "device": (["--device", "cpu"], "cpu"),
    "precision": (["--precision", "bf16"], "bf16"),
    "draws": (["--draws", "100"], 100),
    "batch_size": (["--batch-size", "5"], 5),
    "workers": (["--workers", "2"], 2),
    "results": (["--results", "out"], Path("out")),
    "save_adversarial": (["--save-adversarial"], True),
    "shard": (["--shard", "3/16"], "3/16"),
    "executor": (["--executor", "ray"], "ray"),
    "address": (["--address", "auto"], "auto"),
    "shards": (["--shards", "8"], 8),
    "cpus_per_task": (["--cpus-per-task", "2"], 2.0),
    "gpus_per_task": (["--gpus-per-task", "0.5"], 0.5),
    "trace": (["--trace"], True),
}
"""Field → how it is typed, and what it then is."""

TOGETHER = ("goal", "targets")
"""Fields that make no sense one without the other."""

PYTHON_ONLY = {
    "at_most": "the command line's default of --n",
    "num_classes": "of a module",
    "name": "of a module",
}
"""Fields without an option, and why."""


@pytest.fixture
def typed(monkeypatch):
    """What ``robench run ARGUMENTS`` asks for."""

    def request(*arguments: str) -> Request:
        caught: list[Request] = []

        def catch(asked: Request) -> Prepared:
            caught.append(asked)
            raise UsageError("caught")

        monkeypatch.setattr("robench.api.prepare", catch)
        done = invoke("run", *arguments)
        assert "caught" in done.err, done.err
        return caught[0]

    return request


def test_every_field_of_a_request_is_an_option_and_every_option_is_a_field():
    group = typer.main.get_command(app)
    options = {item.name for item in group.commands["run"].params} - {
        *("plots", "as_json", "validate", "dry_run", "log")
    }
    names = {item.name for item in fields(Request)}
    assert options == names - PYTHON_ONLY.keys()
    assert options == TYPED.keys()


def test_an_option_changes_its_own_field_alone(typed):
    plain = typed()
    assert plain == Request(results=Path("results"))
    for name, (words, value) in TYPED.items():
        assert value != getattr(Request(), name), name
        if name not in TOGETHER:
            assert typed(*words) == replace(plain, **{name: value}), name
    words = [word for name in TOGETHER for word in TYPED[name][0]]
    assert typed(*words) == replace(plain, **{name: TYPED[name][1] for name in TOGETHER})


def test_everything_that_can_be_typed_together(typed):
    words = [word for arguments, _ in TYPED.values() for word in arguments]
    assert typed(*words) == Request(**{name: value for name, (_, value) in TYPED.items()})


def test_the_old_names_of_options_still_work(typed):
    old = typed("--data", "there", "--data-option", "size=32")
    assert old == typed("--data-root", "there", "--dataset-option", "size=32")


def test_every_setting_of_the_engine_comes_from_the_request():
    given = {name: value for name, (_, value) in TYPED.items()}
    request = replace(Request(**given), device="meta")
    prepared = Prepared(request, load_suite("quick"), torch.device("meta"), [])
    for item in fields(Settings):
        # How often to save is nobody's choice; --device names the further devices as well.
        if item.name not in ("snapshot_seconds", "further_devices"):
            asked = getattr(request, item.name)
            assert (
                str(getattr(prepared.settings, item.name))
                == str(asked)
                != str(getattr(Settings(), item.name))
            )


def test_a_request_by_names_survives_pickling():
    request = Request(**{name: value for name, (_, value) in TYPED.items()})
    assert pickle.loads(pickle.dumps(request)) == request


REFUSED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "model": (["pgdat"], {"models": ["pgdat"]}),
    "dataset": ([MODEL, "--dataset", "digitz"], {"models": [MODEL], "dataset": "digitz"}),
    "suite": ([MODEL, "--suite", "quik"], {"models": [MODEL], "suite": "quik"}),
    "several suites": (
        [MODEL, "--suite", "quick", "--suite", "quik"],
        {"models": [MODEL], "suite": ["quick", "quik"]},
    ),
    "settings": (
        [MODEL, "--set", "pgd-02.steps=3"],
        {"models": [MODEL], "settings": {"pgd-02.steps": 3}},
    ),
    "split": ([MODEL, "--split", "tset"], {"models": [MODEL], "split": "tset"}),
    "device": ([MODEL, "--device", "gpu"], {"models": [MODEL], "device": "gpu"}),
    "precision": ([MODEL, "--precision", "bf17"], {"models": [MODEL], "precision": "bf17"}),
    "norm": ([MODEL, "--norm", "L2"], {"models": [MODEL], "norm": "L2"}),
    "eps": ([MODEL, "--eps", "8/0"], {"models": [MODEL], "eps": "8/0"}),
    "eps list": ([MODEL, "--eps", "0.2,0.1"], {"models": [MODEL], "eps": [0.2, 0.1]}),
    "eps 0": ([MODEL, "--eps", "0"], {"models": [MODEL], "eps": 0}),
    "n": ([MODEL, "--n", "501"], {"models": [MODEL], "n": 501}),
    "seed": ([MODEL, "--seed=-1"], {"models": [MODEL], "seed": -1}),
    "large seed": ([MODEL, f"--seed={2**63}"], {"models": [MODEL], "seed": 2**63}),
    "draws": ([MODEL, "--draws", "1"], {"models": [MODEL], "draws": 1}),
    "batch_size": ([MODEL, "--batch-size=0"], {"models": [MODEL], "batch_size": 0}),
    "workers": ([MODEL, "--workers=0"], {"models": [MODEL], "workers": 0}),
    "devices": (
        [MODEL, "--device", "cpu:2", "--workers", "2"],
        {"models": [MODEL], "device": "cpu:2", "workers": 2},
    ),
    "results": ([MODEL, "--results", "taken"], {"models": [MODEL], "results": "taken"}),
    "input": ([MODEL, "--input", "low=-1"], {"models": [MODEL], "input": {"low": -1}}),
}


@pytest.mark.parametrize(("words", "asked"), REFUSED.values(), ids=REFUSED)
def test_python_refuses_what_the_command_line_refuses_with_the_same_words(
    tmp_path, monkeypatch, words, asked
):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    done = invoke("run", *words)
    with pytest.raises(RobenchError) as caught:
        prepare(Request(**asked))
    assert done.code == caught.value.exit_code == 2
    assert done.err == f"robench: error: {' '.join(str(caught.value).split())}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


class Broken(nn.Module):
    """A module that classifies nothing."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)[:, :10] / 0 * 0


class Misspelt(nn.Module):
    """A module with a slip in its code."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.flaten(inputs)


class Asserts(nn.Module):
    """A module that asserts, without a word."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise AssertionError


class Waves(nn.Module):
    """A module of complex numbers."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(inputs.flatten(1))[:, :10]


def linear(features: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 10))


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (linear(65), ModelError, r"does not take digits's inputs \(8, 1, 8, 8\)"),
        (Broken(), ModelError, "no logit of a clean sample is finite"),
        (Misspelt(), ModelError, "model: .*AttributeError: .* no attribute 'flaten'"),
        (Asserts(), ModelError, "model: .*AssertionError"),
        (Waves(), ModelError, r"model: .* complex numbers \(torch.complex64\)"),
        (
            wrap_module(linear(64), num_classes=3, input={"channels": 1}),
            UsageError,
            "the model has 3 classes, digits has 10",
        ),
        (
            wrap_module(linear(64), num_classes=10, attention={"layer": "nowhere"}),
            CardError,
            "nowhere",
        ),
        (
            wrap_module(linear(64), num_classes=10, attention={"feature_layer": "nowhere"}),
            CardError,
            "nowhere",
        ),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_the_first_attack(
    tmp_path, model, error, words
):
    with pytest.raises(error, match=words):
        robench.evaluate(
            model, "digits", "quick", threat_model="Linf-0.1", results=tmp_path / "out"
        )
    assert list(tmp_path.iterdir()) == []


def test_an_attack_that_cannot_be_is_refused_before_the_first_one(tmp_path):
    suite = tmp_path / "mine.toml"
    suite.write_text(
        '[[attacks]]\nname = "good"\nattack = "pgd"\n'
        '[[attacks]]\nname = "bad"\nattack = "pgd"\nparams = { steps = 0 }\n'
    )
    with pytest.raises(AttackError, match="steps"):
        robench.evaluate(MODEL, "digits", suite, n=2, results=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_modules_cannot_have_one_name():
    with pytest.raises(UsageError, match="2 modules under one name"):
        prepare(Request([linear(64), linear(64)], "digits", eps="0.1"))


@pytest.mark.parametrize(
    "about_files",
    [
        {"split": "train"},
        {"data_root": "data"},
        {"dataset_options": {"size": 8}},
        {"download": True},
    ],
)
def test_samples_that_are_given_are_not_looked_for(about_files):
    with pytest.raises(UsageError, match="for a data set that is named"):
        prepare(Request((MODEL,), load_dataset("digits", n=4), **about_files))


def test_a_module_needs_a_threat_model():
    with pytest.raises(UsageError, match="does not say what to evaluate it under"):
        robench.evaluate(linear(64), "digits", "quick")


def test_a_request_and_keywords_give_the_same_records():
    common = {"seed": 3, "device": "cpu", "settings": {"pgd-20.steps": 2}}
    words = robench.evaluate(MODEL, "digits", "quick", threat_model="L2-1/2", n=3, **common)
    request = Request((MODEL,), "digits", suite="quick", norm="L2", eps="1/2", n=3, **common)
    asked = robench.evaluate(request)
    assert [item.record.key for item in asked] == [item.record.key for item in words]
    assert {str(item.record.threat_model) for item in asked} == {"L2-1/2"}


def test_a_request_takes_no_second_opinion():
    with pytest.raises(UsageError, match="a request and further fields"):
        robench.evaluate(Request((MODEL,)), n=3)


def test_several_models_of_all_kinds_in_one_request(tmp_path):
    data = load_dataset("digits", n=4)
    request = Request(
        (MODEL, linear(64)),
        data,
        suite="quick",
        settings={"pgd-20.steps": 2},
        eps="0.1",
        results=tmp_path,
        name="mine",
    )
    prepared = prepare(request)
    assert prepared.jobs == 4
    assert list(tmp_path.iterdir()) == []
    records = [item.record for item in prepared.run()]
    assert [record.model.name for record in records] == ["pgd-at", "pgd-at", "mine", "mine"]
    assert {record.n for record in records} == {4}
    assert {str(record.threat_model) for record in records} == {"Linf-0.1"}


@pytest.mark.parametrize(
    ("n", "at_most", "taken"), [(None, 20, 20), (None, 10_000, 500), (None, None, 500), (7, 3, 7)]
)
def test_how_many_samples_are_taken(n, at_most, taken):
    ((_, _, samples),) = prepare(Request((MODEL,), suite="quick", n=n, at_most=at_most)).planned
    assert len(samples) == taken


def test_samples_that_are_given_narrow_a_short_name_if_the_zoo_knows_them():
    # Data sets have models of this name; tensors are of none.
    for data in (load_dataset("digits", n=4), "digits"):
        ((located,), _) = choose_models(Request(("pgd-at",), data))
        assert located.card.dataset == "digits"


def test_unlabelled_samples_are_refused():
    with pytest.raises(DataError):
        prepare(Request((MODEL,), (torch.zeros(3, 1, 8, 8), torch.zeros(2, dtype=torch.int64))))


@pytest.mark.parametrize("name", ["norm", "dataset", "split", "suite", "results", "device", "name"])
def test_what_is_given_empty_is_not_left_out(name):
    with pytest.raises(UsageError, match=f"{name} is empty"):
        Request(**{name: ""})
    with pytest.raises(UsageError, match="num_classes is 0"):
        Request(num_classes=0)


@pytest.mark.parametrize("name", ["n", "seed", "num_classes", "batch_size", "workers", "shards"])
def test_numpys_integers_are_pythons(name):
    request = Request(**{name: np.int64(4)})
    assert request == Request(**{name: 4})
    assert type(getattr(request, name)) is int


def test_numpys_other_values_are_pythons():
    request = Request(cpus_per_task=np.float32(2), trust_code=np.bool_(True), save_adversarial=True)
    assert request == Request(cpus_per_task=2.0, trust_code=True, save_adversarial=True)
    assert type(request.cpus_per_task) is float
    assert request.trust_code is True
    assert type(Request(goal="targeted", targets=np.int64(2)).targets) is int


WRONG_TYPES = {
    "n": (2.5, "8", True, torch.tensor(3)),
    "seed": (1.5, True, None, torch.tensor(3), np.float64(1)),
    "batch_size": (4.0, "4", False),
    "num_classes": (10.0, np.array([10])),
    "cpus_per_task": ("2", True, None),
    "save_adversarial": ("yes", 1, None),
    "results": (123, b"out", torch.zeros(9)),
    "data_root": (3,),
    "input": (None, "grey", 3),
    "forward": ("logits", None, ["output"]),
    "settings": (None, [("a", 1)]),
    "name": (None, Path("a"), 3),
    "split": (None, 1),
    "architecture": (nn.Flatten,),
    "shard": (3,),
    "models": (nn.Sequential(nn.Flatten()), Path("a"), None),
    "suite": (123, None),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_TYPES.items() for value in values]
)
def test_a_field_of_another_type_is_refused_in_one_line(name, value):
    with pytest.raises(UsageError, match=f"^{name} is .*, it must be ") as raised:
        Request(**{name: value})
    assert len(str(raised.value)) < 120


class Named(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def other(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


NO_MODELS: dict[str, tuple[Any, str]] = {
    "none": (None, "None is no model"),
    "a class": (Named, r"the class Named is no model.*Named\(\)"),
    "forward": (
        Named().forward,
        "the method forward of Named is no model. Pass the module itself$",
    ),
    "a method": (Named().other, "the method other of Named.*whose forward calls it"),
    "a lambda": (lambda inputs: inputs, "the function lambda is no model.*whose forward calls it"),
    "a state dict": (nn.Linear(2, 2).state_dict(), "a state dict is no model.*load_state_dict"),
    "a dictionary": ({"model": 1}, r"a dictionary \(dict\) is no model"),
    "a list": ([nn.Linear(2, 2)], r"a list of 1 is no model.*robench.Request\(models="),
    "a tensor": (torch.full((2, 2), 0.1234), "what is of type Tensor is no model"),
}


@pytest.mark.parametrize(("given", "words"), NO_MODELS.values(), ids=NO_MODELS)
def test_what_is_no_model_is_said_without_its_weights(given, words):
    for ask in (
        lambda: robench.evaluate(given, "digits", "quick", threat_model="Linf-0.2"),
        lambda: robench.evaluate(
            given, "digits", "quick", threat_model="Linf-0.2", input={"channels": 1}
        ),
        lambda: robench.attack(given, torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), eps=0.1),
        lambda: robench.load_model(given),
    ):
        with pytest.raises(UsageError, match=words) as raised:
            ask()
        assert not re.search(r"tensor|0\.1234", str(raised.value))
