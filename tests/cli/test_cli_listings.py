"""What can be listed: attacks, suites, models, recipes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from invoke_cli import invoke

from robench.attacks import ADAPTERS, ATTACKS
from robench.attacks.suites import list_suites, load_suite
from robench.defenses import RECIPES
from robench.models.cards import parse_card
from robench.models.zoo import find_card, list_cards
from robench.records import Suite


@pytest.fixture
def own_zoo(tmp_path, monkeypatch):
    """A zoo folder of the user's own that holds a copy of one digits model."""
    source = find_card("digits/Linf-0.2/pgd-at").folder
    folder = tmp_path / "zoo" / "digits" / "Linf-0.2" / "pgd-at"
    shutil.copytree(source, folder)
    monkeypatch.setenv("ROBENCH_ZOO", str(tmp_path / "zoo"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_attacks_lists_every_registered_name():
    text = invoke("attacks").out
    for name in (*ATTACKS, *ADAPTERS, *list_suites()):
        assert name in text


def test_attacks_as_json_is_the_suites_themselves():
    content = invoke("attacks", "--json").json
    assert set(content["attacks"]) == set(ATTACKS)
    assert {n: Suite.model_validate(s) for n, s in content["suites"].items()} == {
        name: load_suite(name) for name in list_suites()
    }


def test_one_suite_shows_its_stages_and_audit():
    text = invoke("attacks", "aa-core").out
    for word in ("apgd-ce", "apgd-t", "fab-t", "square", "queries=5000", "10%", "100"):
        assert word in text
    assert Suite.model_validate(invoke("attacks", "aa-core", "--json").json) == load_suite(
        "aa-core"
    )


def test_a_suite_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[attacks]]\nname = "long"\nattack = "pgd"\nparams = { steps = 99 }\n')
    assert "steps=99" in invoke("attacks", path).out


def test_zoo_list_has_a_line_for_every_card(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = invoke("zoo", "list").out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [card.id for card in list_cards()]
    content = invoke("zoo", "list", "--dataset", "digits", "--json").json
    assert [item["id"] for item in content] == [card.id for card in list_cards("digits")]


def test_zoo_list_of_nothing_says_where_it_looked():
    done = invoke("zoo", "list", "--dataset", "nosuch")
    assert done.code == 0
    assert done.out == ""
    assert "model_zoo" in done.err


def test_zoo_show_prints_a_valid_card():
    card = find_card("digits/Linf-0.2/pgd-at").card
    assert parse_card(invoke("zoo", "show", "digits/Linf-0.2/pgd-at").out) == card
    assert invoke("zoo", "show", "digits/Linf-0.2/pgd-at", "--json").json["card"] == (
        card.model_dump(mode="json")
    )


def test_zoo_verify_loads_what_is_named(own_zoo):
    done = invoke("zoo", "verify", "pgd-at", "--json")
    assert done.code == 0
    (found,) = done.json
    assert (found["id"], found["ok"], found["problem"]) == ("digits/Linf-0.2/pgd-at", True, None)
    assert found["accuracy"] == "not asked"


def test_zoo_verify_finds_a_flipped_bit(own_zoo):
    weights = own_zoo / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = invoke("zoo", "verify", "pgd-at", "standard")
    assert done.code == 2
    assert "sha256" in done.out
    assert [line.split()[-1] for line in done.out.splitlines() if "standard" in line] == ["ok"]


def test_a_broken_card_does_not_hide_the_others(own_zoo):
    (own_zoo / "card.toml").write_text("name = 3\n")
    done = invoke("zoo", "list", "--dataset", "digits")
    assert done.code == 0
    assert "digits/Linf-0.2/trades" in done.out
    assert str(Path("Linf-0.2", "pgd-at", "card.toml")) in done.err
    assert invoke("zoo", "verify", "--dataset", "digits").code == 2


def test_train_without_a_recipe_lists_them():
    names = [line.split()[0] for line in invoke("train").out.splitlines()[1:]]
    assert names == list(RECIPES)
