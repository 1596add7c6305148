"""Bad input ends as one line on stderr that helps, exit code 2, and nothing half-written."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from combinations import one_at_a_time
from invoke_cli import invoke
from safetensors.torch import load_file, save_file

from robench.errors import UsageError
from robench.models.cards import read_card, write_card
from robench.models.checkpoints import checkpoint_sha256
from robench.models.zoo import find_card

MODEL = "digits/Linf-0.2/pgd-at"


def refused(*arguments: object) -> str:
    """The error line of a command that must be refused."""
    done = invoke(*arguments)
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("robench: error: ")
    assert done.err.count("\n") == 1, done.err
    return done.err


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def zoo_model(tmp_path, monkeypatch):
    """A copy of a digits model in a zoo of the user's own, to be damaged."""
    folder = tmp_path / "zoo" / MODEL
    shutil.copytree(find_card(MODEL).folder, folder)
    monkeypatch.setenv("ROBENCH_ZOO", str(tmp_path / "zoo"))
    return folder


def rewrite(folder, *, state=None, **changes):
    """Change a copied model's weights or card, and set its hash right."""
    path = folder / "weights.safetensors"
    if state is not None:
        save_file(state, path)
    card = read_card(folder / "card.toml")
    weights = card.weights.model_copy(update={"sha256": checkpoint_sha256(path)})
    write_card(card.model_copy(update={"weights": weights, **changes}), folder / "card.toml")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("std=0", "--input: std must be positive"),
        ("mean=grey", "--input: mean: give a number, or one for each channel"),
        ("mean=0.1,0.2", "--input: mean has 2 values for 1 channels"),
        ("low=2", "--input: high (1.0) must be above low (2.0)"),
        ("range=255", "--input: range is not a field"),
    ],
)
def test_inputs_that_cannot_be(zoo_model, option, words):
    line = refused(
        *("doctor", zoo_model / "weights.safetensors", "--arch", "digits_resnet"),
        *("--dataset", "digits", f"--input={option}"),
    )
    assert words in line
    assert "pydantic" not in line


@pytest.mark.parametrize("command", ["run", "doctor", "attention"])
@pytest.mark.parametrize("option", ["--arch-arg=width=3", "--input=low=-1"])
def test_what_belongs_to_weights_without_a_card(command, option):
    assert "Name their architecture with --arch" in refused(command, MODEL, option)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pgdat"], ["unknown model 'pgdat'", "'pgd-at'"]),
        (["qqqq"], ["unknown model 'qqqq'", "trades"]),
        (["digits/Linf-0.2/pgd"], ["unknown model", MODEL]),
        (["pgd-at", "--dataset", "digitz"], ["unknown data set 'digitz'", "'digits'"]),
        (["--dataset", "digitz"], ["unknown data set 'digitz'", "'digits'"]),
        (["--dataset", "svhn"], ["no model for 'svhn'", "zoo list"]),
        (["--suite", "standart"], ["unknown suite 'standart'", "'standard'"]),
        (["--suite", "missing.toml"], ["missing.toml"]),
        (["pgd-at", "--eps", "0"], ["eps must be positive"]),
        (["pgd-at", "--eps", "-1"], ["eps '-1' is not a number"]),
        (["pgd-at", "--eps", "1.01"], ["eps must be at most 1", "8/255"]),
        (["pgd-at", "--eps", "8/0"], ["divides by zero"]),
        (["pgd-at", "--norm", "L3", "--eps", "1"], ["unknown norm 'L3'", "L2"]),
        (["pgd-at", "--norm", "L2"], ["--norm L2 without --eps"]),
        (["pgd-at", "--n", "501"], ["n = 501", "500 samples"]),
        (["pgd-at", "--n", "0"], ["n = 0"]),
        (["pgd-at", "--device", "gpu"], ["unknown device 'gpu'", "cuda"]),
        (["pgd-at", "pyautoattack-resnet18"], ["cifar10, digits", "--dataset"]),
        (["pgd-at", "--arch-arg", "width=3"], ["--arch"]),
        (["hf:a/b"], ["no data set is named", "--dataset"]),
    ],
)
def test_wrong_names_and_values(arguments, words, tmp_path):
    line = refused("run", "--suite", "quick", "--results", "out", *arguments)
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cpu" in refused("run", "pgd-at", "--device", "cuda")


@pytest.mark.parametrize("suite", ["[[attacks]", "description = 'x'", "[[attacks]]\nname = 'a b'"])
def test_a_malformed_suite_file(suite, tmp_path):
    (tmp_path / "mine.toml").write_text(suite)
    assert "mine.toml" in refused("run", "pgd-at", "--suite", "mine.toml")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('attack = "pdg"', ["unknown attack 'pdg'", "'pgd'"]),
        ('attack = "pgd"\nparams = { step = 3 }', ["no parameter 'step'", "'steps'"]),
        ('attack = "pgd"\nparams = { steps = 0 }', ["steps"]),
        ('attack = "nosuch:PGD"', ["unknown attack adapter 'nosuch'"]),
    ],
)
def test_an_impossible_attack_is_refused_before_any_is_run(entry, words, tmp_path):
    good = '[[attacks]]\nname = "good"\nattack = "pgd"\nparams = { steps = 1 }\n'
    (tmp_path / "mine.toml").write_text(f'{good}[[attacks]]\nname = "bad"\n{entry}\n')
    line = refused("run", "pgd-at", "--suite", "mine.toml", "--results", "out")
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_results_folder_that_is_a_file(inside, tmp_path):
    (tmp_path / "taken").write_text("mine")
    place = tmp_path / "taken" / inside
    assert "--results" in refused("run", "pgd-at", "--n", 5, "--results", place)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_results_folder_without_permission(tmp_path, monkeypatch):
    # Asked of the system instead of set on the folder: tests may run as root, who may write.
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path)
    line = refused("run", "pgd-at", "--n", 5, "--results", tmp_path / "new")
    assert "permission" in line
    assert not (tmp_path / "new").exists()


def test_truncated_weights(zoo_model):
    path = zoo_model / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "sha256" in refused("run", MODEL)
    rewrite(zoo_model)
    assert "weights.safetensors" in refused("run", MODEL)


def test_wrong_keys_are_listed_both_ways(zoo_model):
    state = load_file(zoo_model / "weights.safetensors")
    first = next(name for name in state if name.endswith("conv1.weight"))
    rewrite(zoo_model, state={f"x.{k}" if k == first else k: v for k, v in state.items()})
    line = refused("run", MODEL)
    assert f"x.{first}" in line
    assert line.count(first) >= 2


def test_a_model_for_other_classes(zoo_model, tmp_path):
    inputs = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=np.arange(6) % 3)
    line = refused("run", MODEL, "--dataset", tmp_path / "data.npz")
    assert "10 classes" in line
    assert "3" in line


def test_inputs_of_another_shape(tmp_path):
    inputs = np.random.default_rng(0).random((10, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=np.arange(10))
    assert "(8, 3, 8, 8)" in refused("run", MODEL, "--dataset", tmp_path / "data.npz")


def test_logits_that_are_not_finite(zoo_model):
    state = load_file(zoo_model / "weights.safetensors")
    rewrite(zoo_model, state={k: v / 0 if v.is_floating_point() else v for k, v in state.items()})
    assert "finite" in refused("run", MODEL, "--results", "out")


def test_an_empty_data_set(tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "dog").mkdir(parents=True)
    assert "images" in refused("run", MODEL, "--dataset", tmp_path / "images")


def test_weights_without_an_architecture(zoo_model):
    line = refused("run", zoo_model / "weights.safetensors", "--dataset", "digits")
    assert "--arch" in line


def test_weights_without_a_threat_model(zoo_model):
    weights = zoo_model / "weights.safetensors"
    line = refused("run", weights, "--arch", "digits_resnet", "--dataset", "digits")
    assert "--eps" in line


def test_a_pickle_that_carries_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "planted"), "w"))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    arguments = ["--arch", "digits_resnet", "--dataset", "digits", "--eps", "0.2"]
    assert "--trust-pickle" in refused("run", tmp_path / "bomb.pt", *arguments)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["leaderboard"], ["no such results folder", "--results"]),
        (["results", "list"], ["no such results folder"]),
        (["results", "show", "abcd"], ["no such results folder"]),
        (["results", "verify"], ["no such results folder"]),
        (["results", "prune"], ["no such results folder"]),
        (["export", "--out", "x.csv"], ["no such results folder"]),
        (["compare", "a", "b"], ["no such results folder"]),
        (["compare", "a"], ["two or more"]),
        (["compare", "a", "b", "--level", "1.5"], ["1.5"]),
        (["check", "pgd-at", "--against", "trades", "--margin", "0"], ["margin"]),
        (["check", "pgd-at", "--against", "trades", "--policy", "no.toml"], ["no.toml"]),
        (["zoo", "show", "pgdat"], ["unknown model 'pgdat'", "'pgd-at'"]),
        (["zoo", "verify", "pgdat"], ["unknown model 'pgdat'"]),
        (["attacks", "quik"], ["unknown suite 'quik'", "'quick'"]),
        (["train", "pgdat"], ["unknown recipe 'pgdat'", "'pgd-at'"]),
        (["train", "standard", "--dataset", "digitz"], ["unknown data set 'digitz'"]),
        (["train", "standard", "--set", "lrr=1"], ["lrr", "lr"]),
        (["train", "standard", "--set", "lr"], ["NAME=VALUE"]),
        (["train", "standard", "--set", "lr=fast"], ["lr"]),
        (["train", "standard", "--epochs", "2", "--set", "epochs=3"], ["epochs"]),
        (["train", "standard", "--threat-model", "Linf-9"], ["eps"]),
        (["train", "standard", "--arch", "nosuch"], ["nosuch"]),
        (["train", "standard", "--arch-arg", "width=3"], ["--arch"]),
        (["train", "standard", "--arch=vit", "--arch-arg=depth=1e999"], ["--arch-arg", "is inf"]),
        (["train", "standard", "--device", "gpu"], ["gpu"]),
    ],
)
def test_other_commands(arguments, words, tmp_path):
    line = refused(*arguments)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "command"),
    one_at_a_time(
        ["a" * 5000, "~nobody-of-this-name/x", "a\0b", "/proc/1/root/x"],
        [
            *("run {}", "run pgd-at --dataset {}", "run pgd-at --suite {}.toml"),
            *("run pgd-at --dataset {}.npz", "compare a {}", "zoo show {}"),
        ],
    ),
)
def test_names_that_are_no_path_on_any_system(text, command):
    """Asking a path what stands there raises all kinds of errors."""
    assert "unexpected" not in refused(*(word.format(text) for word in command.split()))


def test_an_error_is_one_line_that_no_terminal_obeys():
    error = UsageError("is\nwrong", where="\x1b[2J\u202e", hint="say\x00")
    assert str(error) == "\\x1b[2J\\u202e: is wrong. say\\x00"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--targets next", "the goal is untargeted, and targets are named"),
        ("--goal targeted", "the goal is targeted, and no targets are named"),
        ("--goal both", "unknown goal 'both'"),
        ("--goal targeted --targets nxt", "targets 'nxt' are no rule, and no class of digits"),
        ("--goal targeted --targets 10", "or its number from 0 to 9"),
        ("--goal targeted --targets 3 --suite reference", "cannot be aimed at targets"),
    ],
)
def test_targets_that_cannot_be(tmp_path, options, words):
    line = refused("run", MODEL, "--n", 9, "--results", tmp_path / "out", *options.split())
    assert words in line
    assert not (tmp_path / "out").exists()
