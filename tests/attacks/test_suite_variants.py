"""Several suites as one, and attacks with other parameters under names that say so."""

from __future__ import annotations

import pytest

from robench.attacks.catalogue import build_attack
from robench.attacks.suites import list_suites, load_suite
from robench.attacks.suites.variants import combined, with_settings
from robench.errors import UnknownNameError, UsageError
from robench.records import AttackSpec, Suite
from robench.threat_models import ThreatModel

LINF = ThreatModel.parse("Linf-0.2")


def suite(name, *attacks):
    return Suite(name=name, attacks=tuple(AttackSpec(**attack) for attack in attacks))


FGSM = {"name": "fgsm", "attack": "fgsm"}
PGD = {"name": "pgd", "attack": "pgd", "params": {"steps": 20}}


def test_one_suite_is_itself():
    for name in list_suites():
        assert combined([load_suite(name)]) == load_suite(name)
        assert with_settings(load_suite(name), {}) == load_suite(name)


def test_what_several_suites_have_is_run_once():
    both = combined([suite("a", FGSM, PGD), suite("b", PGD, {**FGSM, "name": "other"})])
    assert (both.name, [spec.name for spec in both.attacks]) == ("a+b", ["fgsm", "pgd", "other"])
    quick = load_suite("quick")
    assert combined([quick, quick]).attacks == quick.attacks


def test_an_entry_of_other_norms_is_added_for_those():
    both = combined([suite("a", {**PGD, "norms": ["Linf"]}), suite("b", PGD)])
    assert [spec.norms for spec in both.attacks] == [("Linf",), ("L2", "L1")]
    assert [len(both.for_norm(norm)) for norm in ("Linf", "L2", "L1")] == [1, 1, 1]


def test_two_attacks_under_one_name_are_refused():
    with pytest.raises(UsageError, match="'pgd' of the suite 'b' is another attack"):
        combined([suite("a", PGD), suite("b", {**PGD, "params": {"steps": 5}})])
    with pytest.raises(UsageError, match="no suite"):
        combined([])


def test_a_changed_attack_has_a_name_that_says_it():
    (fgsm, pgd) = with_settings(suite("a", FGSM, PGD), {"pgd.steps": 3, "pgd.restarts": 2}).attacks
    assert fgsm == AttackSpec(**FGSM)
    assert (pgd.name, pgd.params) == ("pgd+steps-3+restarts-2", {"steps": 3, "restarts": 2})
    build_attack(pgd, LINF)


def test_the_value_is_in_the_name_as_text():
    (pgd,) = with_settings(suite("a", PGD), {"pgd.steps": "../x y"}).attacks
    assert pgd.name == "pgd+steps-.._x_y"


def test_a_stage_of_a_cascade_can_be_set():
    given = load_suite("aa-standard")
    (spec,) = given.for_norm("Linf")
    stage = next(stage for stage in spec.stages if "square" in stage.name)
    changed = with_settings(given, {f"{spec.name}.{stage.name}.queries": 10})
    found = next(s for s in changed.attacks if s.name.startswith(spec.name))
    assert found.name == f"{spec.name}+{stage.name}-queries-10"
    assert {s.name: s.params.get("queries") for s in found.stages}[stage.name] == 10
    assert [s for s in found.stages if s.name != stage.name] == [
        s for s in spec.stages if s.name != stage.name
    ]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"pdg.steps": 3}, UnknownNameError, "Did you mean 'pgd'"),
        ({"steps": 3}, UsageError, "names no attack"),
        ({"pgd.": 3}, UsageError, "names no attack"),
    ],
)
def test_wrong_settings_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        with_settings(suite("a", PGD), settings)


def test_a_parameter_that_the_attack_has_not_is_refused():
    (pgd,) = with_settings(suite("a", PGD), {"pgd.stebs": 3}).attacks
    with pytest.raises(UsageError, match="steps"):
        build_attack(pgd, LINF)
