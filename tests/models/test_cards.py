from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robench.errors import CardError, StoreError
from robench.models.cards import format_card, parse_card, read_card, write_card
from robench.records import ModelCard

MINIMAL = """
name = "tiny"
dataset = "digits"
num_classes = 10
threat_model = "Linf-8/255"
defense = "standard"
[architecture]
name = "digits_resnet"
[weights]
path = "weights.safetensors"
sha256 = "{sha}"
""".replace("{sha}", "ab" * 32)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    TEXT
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)
TABLES = st.dictionaries(TEXT, PLAIN, max_size=4)


def test_a_minimal_card_has_the_documented_defaults() -> None:
    card = parse_card(MINIMAL)
    assert card.id == "digits/Linf-8_255/tiny"
    assert (card.input.low, card.input.high, card.input.mean) == (0.0, 1.0, None)
    assert card.weights.key is None
    assert card.attention.method == "grad_cam"


def test_none_is_left_out_of_free_form_tables() -> None:
    card = parse_card(MINIMAL)
    content = {"a": None, "b": {"c": None, "d": 1}, "e": [{"f": None}]}
    spec = card.architecture.model_copy(update={"arguments": content})
    again = parse_card(format_card(card.model_copy(update={"architecture": spec})))
    assert again.architecture.arguments == {"b": {"d": 1}, "e": [{}]}


@settings(deadline=None)
@given(arguments=TABLES, recipe=TABLES, output=st.lists(st.integers(-3, 3) | TEXT, max_size=3))
@example({"0\n": {}, "a": 1e300, "b": [{"x": [{"y": 1}]}, {}], "c": "\x7f"}, {}, [])
def test_cards_round_trip(
    arguments: dict[str, Any], recipe: dict[str, Any], output: list[int | str]
) -> None:
    content = tomllib.loads(MINIMAL)
    content["architecture"]["arguments"] = arguments
    content["provenance"] = {"recipe": recipe, "seed": 3, "year": 2018}
    content["forward"] = {"output": output, "outputs": {"aux": [1, 0]}}
    content["input"] = {"channels": 3, "size": [32, 32], "mean": [0.5, 0.4, 0.3]}
    card = ModelCard.model_validate(content)
    again = parse_card(format_card(card))
    assert again == card
    assert again.fingerprint == card.fingerprint
    # The way eps is written takes no part in equality, but it names the folder.
    assert again.id == card.id


def test_files_round_trip_and_leave_nothing_behind(tmp_path: Path) -> None:
    card = parse_card(MINIMAL)
    path = write_card(card, tmp_path / "a" / "b" / "card.toml")
    assert read_card(path) == card
    assert [p.name for p in path.parent.iterdir()] == ["card.toml"]
    write_card(card.model_copy(update={"num_classes": 3}), path)
    assert read_card(path).num_classes == 3


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('name = "tiny"\n', "", "name is missing"),
        ("num_classes = 10", "num_classes = 1", "num_classes: .*greater than or equal to 2"),
        ("num_classes = 10", 'num_classes = 10\ncolour = "red"', "colour is not a field"),
        ("Linf-8/255", "L7-8/255", "threat_model: unknown norm"),
        ("Linf-8/255", "Linf-8", "at most 1"),
        ("ab" * 32, "xyz", "weights.sha256"),
        ("[weights]", "[weigths]", "weights is missing"),
        ("[weights]", "[input]\nlow = 2.0\n[weights]", r"input: high \(1.0\) must be above"),
        ("[weights]", "[input]\nhigh = nan\n[weights]", "input.high: .*finite"),
        ("[weights]", "[input]\nstd = inf\n[weights]", "input.std.0: .*finite"),
        ("[weights]", "[input]\nmean = true\n[weights]", "input.mean: give a number"),
        ("[weights]", '[input]\nlow = "0"\n[weights]', "input.low: '0' is no number"),
        ("[weights]", "[input]\nchannels = true\n[weights]", "input.channels: True is no number"),
        ("[weights]", "[input]\nsize = [0, 8]\n[weights]", "input.size.0: .*greater"),
        ("[weights]", "[forward]\noutput = true\n[weights]", "forward.output.0: True is no number"),
        ("[weights]", "[forward]\noutput = [1.0]\n[weights]", "forward.output.0: 1.0 is no number"),
        ("num_classes = 10", 'num_classes = "10"', "num_classes: '10' is no number"),
        ("num_classes = 10", "num_classes = 10.0", "num_classes: 10.0 is no whole number"),
        ("num_classes = 10", "num_classes = 10\nschema_version = true", "schema_version: True"),
        ('"Linf-8/255"', "8", "threat_model: is no text"),
        ("Linf-8/255", "Linf-٨/٢٥٥", "threat_model: .*is not a number"),
        ("Linf-8/255", f"L2-{'1' * 5000}", "threat_model: .*is not a number"),
        ("[weights]", "arguments.a = 2020-01-01\n[weights]", "arguments: a is of type date"),
        ("[weights]", "arguments.a = [-inf]\n[weights]", "arguments: a.0 is -inf, not a finite"),
        ("[weights]", f"arguments.{'a.' * 900}b = 1\n[weights]", "nested more than 20 deep"),
        ('"tiny"\n', '"tiny"\rcolour = 1\n', "not valid TOML"),
        ('"tiny"', '"../evil"', "name: "),
        ('"tiny"', '"tiny', "not valid TOML"),
    ],
)
def test_errors_name_the_file_and_the_field(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "card.toml"
    assert MINIMAL.count(old) >= 1
    path.write_text(MINIMAL.replace(old, new, 1))
    with pytest.raises(CardError, match=words) as raised:
        read_card(path)
    assert raised.value.where == str(path)
    assert "\n" not in str(raised.value)


def test_unreadable_files_are_card_errors(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no such card"):
        read_card(tmp_path / "card.toml")
    with pytest.raises(CardError, match="cannot be read"):
        read_card(tmp_path)
    (tmp_path / "card.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CardError, match="cannot be read"):
        read_card(tmp_path / "card.toml")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_card(parse_card(MINIMAL), tmp_path / "file" / "card.toml")


def test_deep_nesting_is_refused_without_a_traceback() -> None:
    with pytest.raises(CardError):
        parse_card("a = " + "[" * 100_000)


def test_a_card_with_code_in_it_cannot_be_written() -> None:
    card = parse_card(MINIMAL)
    odd = card.architecture.model_copy(update={"arguments": {"a": [None]}})
    with pytest.raises(CardError, match="NoneType"):
        format_card(card.model_copy(update={"architecture": odd}))
