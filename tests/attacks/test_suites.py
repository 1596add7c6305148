from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from robench.attacks import build_attack
from robench.attacks.catalogue import foreign_code
from robench.attacks.suites import list_suites, load_suite
from robench.errors import AttackError, UnknownNameError, UsageError
from robench.records import AttackSpec
from robench.threat_models import NORMS, Norm, ThreatModel

EPS: dict[Norm, float] = {"Linf": 0.03, "L2": 0.5, "L1": 12.0}


@pytest.mark.parametrize("name", list_suites())
def test_every_entry_of_every_suite_becomes_an_attack(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.description
    built = 0
    threats = [ThreatModel.of(norm, EPS[norm]) for norm in NORMS]
    for threat in (*threats, ThreatModel.corruptions()):
        for spec in suite.for_norm(threat.family):
            for stage in spec.stages or (spec,):
                attack = build_attack(stage, threat)
                assert attack.name == stage.name
                built += 1
    assert built


def test_the_suites_that_users_rely_on_are_there() -> None:
    assert {
        "quick",
        "standard",
        "core",
        "aa-standard",
        "aa-plus",
        "aa-rand",
        "aa-core",
        "fast",
        "strong",
    } <= set(list_suites())


@pytest.mark.parametrize(
    ("norm", "budgets"),
    [
        ("Linf", {"apgd-ce": (1, 100), "apgd-t": (9, 900), "fab-t": (9, 900), "square": (1, 5000)}),
        ("L2", {"apgd-ce": (1, 100), "apgd-t": (9, 900), "fab-t": (9, 900), "square": (1, 5000)}),
        ("L1", {"apgd-ce": (5, 500), "apgd-t": (5, 500), "fab-t": (9, 900), "square": (1, 5000)}),
    ],
)
def test_aa_standard_has_autoattacks_budgets(
    norm: Norm, budgets: dict[str, tuple[int, int]]
) -> None:
    """Searches and steps for each stage on ten classes."""
    (spec,) = load_suite("aa-standard").for_norm(norm)
    found = {}
    for stage in spec.stages:
        attack = build_attack(stage, ThreatModel.of(norm, EPS[norm]))
        found[stage.name] = (attack.searches(10), attack.searches(10) * attack.most_steps())  # type: ignore[union-attr]
    assert found == budgets
    assert list(found) == list(budgets)  # in AutoAttack's order


def test_aa_rand_averages_gradients_and_aa_plus_has_all_stages() -> None:
    (rand,) = load_suite("aa-rand").for_norm("Linf")
    assert [stage.params.get("eot") for stage in rand.stages] == [20, 20]
    (plus,) = load_suite("aa-plus").for_norm("Linf")
    assert [stage.name for stage in plus.stages] == [
        "apgd-ce",
        "apgd-dlr",
        "fab",
        "square",
        "apgd-t",
        "fab-t",
    ]


def test_aa_core_audits_and_carries_another_name() -> None:
    (core,) = load_suite("aa-core").for_norm("Linf")
    assert core.audit is not None
    assert (core.audit.fraction, core.audit.minimum, core.audit.first_stage) == (0.1, 100, 2)
    assert [stage.name for stage in core.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert "autoattack" not in core.name


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fast_audits_its_attacks_with_all_of_autoattack(norm: Norm) -> None:
    (fast,) = load_suite("fast").for_norm(norm)
    assert fast.audit is not None
    on_all = {"Linf": ["pma"], "L2": ["apgd-ce", "fmn", "fab-nearest"]}[norm]
    first = {"Linf": 3, "L2": 4}[norm]
    assert (fast.audit.fraction, fast.audit.minimum, fast.audit.first_stage) == (0.1, 40, first)
    (standard,) = load_suite("aa-standard").for_norm(norm)
    assert [stage.name for stage in fast.stages[:first] if stage.within is None] == on_all
    assert tuple(stage for stage in fast.stages if stage in standard.stages) == standard.stages
    assert fast.stages[-3:] == standard.stages[-3:]
    assert "autoattack" not in fast.name


@pytest.mark.parametrize(("norm", "targets"), [("Linf", 9), ("L2", 6)])
def test_strong_makes_the_searches_of_autoattack(norm: Norm, targets: int) -> None:
    """By name, so by their draws, and by steps; under L2 those for the nearest classes."""
    (strong,) = load_suite("strong").for_norm(norm)
    (standard,) = load_suite("aa-standard").for_norm(norm)
    stages = {stage.name: stage for stage in strong.stages}
    for stage in standard.stages:
        params = dict(stages[stage.name].params)
        if "targets" in stage.params:
            assert (params.pop("target_order"), params["targets"]) == ("malt", targets)
            params["targets"] = 9
        assert stages[stage.name].model_copy(update={"params": params}) == stage
    first = len(strong.stages) if strong.audit is None else strong.audit.first_stage
    audited = {"Linf": ["fab-t"], "L2": []}[norm]
    assert [stage.name for stage in strong.stages[first:]] == audited
    assert "autoattack" not in strong.name


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_users_own_file_works_like_ours(tmp_path: Path) -> None:
    _write(tmp_path / "part.toml", '[[attacks]]\nname = "mine"\nattack = "pgd"\n')
    path = _write(
        tmp_path / "all.toml",
        'version = 3\n[[attacks]]\ninclude = "part.toml"\n[[attacks]]\ninclude = "quick"\n',
    )
    for form in (path, str(path)):
        suite = load_suite(form)
        assert suite.name == "all"
        assert suite.version == 3
        assert suite.attacks[0].name == "mine"
        assert suite.attacks[1:] == load_suite("quick").attacks


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "attacks"),
        ("attacks = []", "attacks"),
        (f"version = {'1' * 5000}", "digits"),
        ("[[attacks]]\nname = 'a'\n", "a cascade has stages"),
        ("[[attacks]]\nname = 'a'\nattack = 'pgd'\nstep = 3\n", "step is not a field"),
        ("[[attacks]]\nname = 'a b'\nattack = 'pgd'\n", "pattern"),
        ("[[attacks]\n", "cannot read the suite"),
        ("schema_version = 2\n[[attacks]]\nname = 'a'\nattack = 'pgd'\n", "schema_version"),
        ("attacks = 3\n", "attacks"),
        ("[[attacks]]\ninclude = 'bad.toml'\n", "circle"),
        ("[[attacks]]\ninclude = 'missing.toml'\n", "unknown suite"),
        ("[[attacks]]\ninclude = 'quick'\nname = 'x'\n", "include"),
    ],
)
def test_files_that_are_no_suites_are_explained(tmp_path: Path, text: str, says: str) -> None:
    path = _write(tmp_path / "bad.toml", text)
    with pytest.raises(UsageError, match=says):
        load_suite(path)


def test_bytes_that_are_no_text_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read the suite"):
        load_suite(path)


def test_unknown_suites_list_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'standard'"):
        load_suite("standart")
    with pytest.raises(UnknownNameError, match="unknown suite"):
        load_suite(tmp_path / "nothing.toml")


@pytest.mark.parametrize("name", ["standard", "core"])
def test_under_l2_fmn_has_carlini_wagners_place_and_passes(name: str) -> None:
    suite = load_suite(name)
    assert suite.version == {"standard": 2, "core": 3}[name]
    entries = {spec.name: spec for spec in suite.for_norm("L2")}
    attack = build_attack(entries["fmn"], ThreatModel.of("L2", 0.5))
    assert attack.most_steps() == 300  # type: ignore[union-attr]
    assert "cw" not in entries
    assert "fmn" not in {spec.name for spec in suite.for_norm("Linf")}


_CODE = "[[attacks]]\nname = 'mine'\nattack = 'attack_of_a_stranger:Attack'\n"
_STAGED = (
    "[[attacks]]\nname = 'mine'\nstages = [{ name = 'a', attack = 'pgd' }, "
    "{ name = 'b', attack = 'package.of_a_stranger:Attack' }]\n"
)


@pytest.mark.parametrize("text", [_CODE, _STAGED, "[[attacks]]\ninclude = 'strange.toml'\n"])
def test_a_file_runs_no_code_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Importing the module would leave a file behind, wherever the suite names it."""
    ran = tmp_path / "ran"
    program = f"open({str(ran)!r}, 'w').close()\nfrom robench.attacks.pgd import PGD as Attack\n"
    _write(tmp_path / "attack_of_a_stranger.py", program)
    _write(tmp_path / "strange.toml", _CODE)
    path = _write(tmp_path / "suite.toml", text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "attack_of_a_stranger", raising=False)
    with pytest.raises(UsageError, match=r"of_a_stranger:Attack' is code.*--trust-code"):
        load_suite(path)
    assert not ran.exists()
    suite = load_suite(path, trust_code=True)
    assert not ran.exists()
    if "stages" not in text:
        built = build_attack(suite.attacks[0], ThreatModel.of("Linf", 0.1))
        assert type(built).__name__ == "PGD"
        assert ran.exists()


@pytest.mark.parametrize(
    ("attack", "error", "says"),
    [
        ("no.such.module:Attack", UsageError, "cannot import"),
        ("json:decoder.JSONDecode", UsageError, "Did you mean 'JSONDecoder'"),
        ("json:__name__", AttackError, "is not a class"),
        ("collections:OrderedDict", AttackError, "cannot be built|wrong parameters|no attack"),
        ("robench.attacks.pgd:PDG", UsageError, "Did you mean 'PGD'"),
    ],
)
def test_a_class_that_is_no_attack_is_explained(
    attack: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        build_attack(AttackSpec(name="a", attack=attack), ThreatModel.of("Linf", 0.1))


def test_what_code_from_outside_decides() -> None:
    """Nothing for robench's own attacks, a library's version, a class's source."""
    assert foreign_code(AttackSpec(name="a", attack="pgd")) == {}
    cascade = AttackSpec(
        name="a",
        stages=(
            AttackSpec(name="b", attack="pyautoattack:standard"),
            AttackSpec(name="c", attack="collections:OrderedDict"),
        ),
    )
    found = foreign_code(cascade)
    assert list(found) == ["pyautoattack:standard", "collections:OrderedDict"]
    assert found["pyautoattack:standard"] == f"pyautoattack {version('pyautoattack')}"
    assert re.fullmatch(r"collections:OrderedDict [0-9a-f]{64}", found["collections:OrderedDict"])
