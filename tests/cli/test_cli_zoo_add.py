"""From a weights file to a model of the zoo."""

from __future__ import annotations

import pytest
import torch
from invoke_cli import invoke
from safetensors.torch import load_file

from robench.datasets import load_dataset
from robench.models.cards import read_card
from robench.models.loading import load_model
from robench.models.zoo import find_card

SOURCE = "digits/Linf-0.2/standard"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A weights file as people have them: nested, prefixed, a pickle of plain tensors."""
    monkeypatch.chdir(tmp_path)
    state = load_file(find_card(SOURCE).folder / "weights.safetensors")
    path = tmp_path / "best.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def add(path, *more):
    """``robench zoo add`` with what the file does not say."""
    architecture = find_card(SOURCE).card.architecture
    arguments = [f"--arch-arg={k}={v}" for k, v in architecture.arguments.items()]
    return invoke(
        *("zoo", "add", path, "--arch", architecture.name, *arguments),
        *("--dataset", "digits", "--eps", "0.2", *more),
    )


def test_a_checkpoint_becomes_a_model(checkpoint, tmp_path):
    done = add(checkpoint, "--name", "mine", "--defense", "standard", "--about", "year=2026")
    assert done.code == 0, done.err
    folder = tmp_path / "model_zoo" / "digits" / "Linf-0.2" / "mine"
    assert {path.name for path in folder.iterdir()} == {"card.toml", "best.pt"}
    card = read_card(folder / "card.toml")
    assert card.weights.path == "best.pt"
    assert (card.weights.key, card.weights.strip_prefix) == ("state_dict", "module.")
    assert card.provenance.year == 2026
    assert card.provenance.measured["n"] == 500
    # The same network gives the same logits, and the recorded accuracy is what they say.
    checkpoint.unlink()
    inputs = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(load_model("mine")(inputs), load_model(SOURCE)(inputs))
    assert float(card.provenance.measured["clean_acc"]) > 95
    assert invoke("zoo", "verify", "mine").code == 0
    assert "digits/Linf-0.2/mine" in invoke("zoo", "list").out


def test_the_card_keeps_what_the_doctor_found(checkpoint, monkeypatch):
    monkeypatch.setattr("robench.inspection.zoo_models._EXAMINED", 64)
    sound = add(checkpoint, "--name", "sound")
    assert "doctor, on 64 of them: nothing found" in sound.out
    examination = find_card("sound").card.provenance.examination
    assert (examination.n, examination.findings) == (64, ())
    assert load_dataset("digits", n=64).fingerprint in examination.data

    # A wrong range is serious and stops nothing: the user may want just that.
    wrong = add(checkpoint, "--name", "wrong", "--input", "high=255")
    assert wrong.code == 0, wrong.err
    assert "severe: input_reading" in wrong.out
    assert "mend: " in wrong.out
    findings = {f.name: f for f in find_card("wrong").card.provenance.examination.findings}
    assert findings["input_reading"].severity == "severe"
    again = invoke("doctor", "wrong", "--n", 64, "--json").json["findings"]
    assert [f["name"] for f in again] == list(findings)
    assert all(f["evidence"] in findings[f["name"]].evidence for f in again)
    assert "input_reading" in invoke("zoo", "show", "wrong").out


def test_the_recorded_accuracy_is_measured_again(checkpoint, tmp_path, unexamined):
    added = add(checkpoint, "--name", "mine", "--json")
    recorded = added.json["card"]["provenance"]["measured"]
    (again,) = invoke("zoo", "verify", "mine", "--accuracy", "--json").json
    assert (again["ok"], again["accuracy"], again["n"]) == (True, "agrees", 500)
    assert again["clean_acc"] == pytest.approx(recorded["clean_acc"], abs=0.01)

    # A card that was edited since: the weights are its own, the range is not.
    card = tmp_path / "model_zoo/digits/Linf-0.2/mine/card.toml"
    card.write_text(card.read_text().replace("[input]", "[input]\nhigh = 255.0"))
    assert invoke("zoo", "verify", "mine").code == 0
    done = invoke("zoo", "verify", "mine", "--accuracy", "--json")
    assert done.code == 2
    assert done.json[0]["accuracy"] == "differs"
    assert f"the card says {recorded['clean_acc']:.2f} %" in done.json[0]["problem"]


def test_missing_data_is_not_the_models_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBENCH_DATA", str(tmp_path))
    done = invoke("zoo", "verify", "resnet10-standard", "--accuracy", "--json")
    assert done.code == 0, done.err
    assert (done.json[0]["ok"], done.json[0]["accuracy"]) == (True, "no data")
    assert "cifar10-jpeg" in done.json[0]["problem"]


def test_it_can_be_run_at_once(checkpoint, tmp_path, unexamined):
    assert add(checkpoint, "--json").json["id"] == "digits/Linf-0.2/best"
    ran = invoke("run", "best", "--suite", "quick", "--n", 2, "--no-plots", "--json")
    assert [row["model"] for row in ran.json["leaderboard"]] == ["best"]


def test_a_model_is_never_replaced(checkpoint, unexamined):
    assert add(checkpoint).code == 0
    again = add(checkpoint)
    assert again.code == 2
    assert "--name" in again.err


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--name", "a b"], "name"),
        (["--about", "shoe_size=3"], "shoe_size"),
        (["--input", "means=0.5"], "means"),
        (["--eps", "2"], "eps"),
        (["--dataset", "digitz"], "digits"),
        (["--arch", "resnet18"], "blocks"),
    ],
)
def test_wrong_answers_write_nothing(checkpoint, tmp_path, more, word):
    done = add(checkpoint, *more)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert word in done.err
    assert not (tmp_path / "model_zoo").exists()


def test_no_such_file_and_no_place(checkpoint, tmp_path, unexamined):
    assert "nosuch.pt" in add(tmp_path / "nosuch.pt").err
    (tmp_path / "model_zoo").write_text("mine")
    assert add(checkpoint).code == 2
    assert (tmp_path / "model_zoo").read_text() == "mine"


def test_shards_stay_where_they_are(tmp_path, monkeypatch, unexamined):
    import json

    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    state = load_file(find_card(SOURCE).folder / "weights.safetensors")
    names = sorted(state)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: state[name] for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    done = add(tmp_path / "m.safetensors.index.json", "--name", "sharded")
    assert done.code == 0, done.err
    assert invoke("zoo", "verify", "sharded").code == 0
