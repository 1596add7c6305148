"""Any suite: it is read as it is written and builds what it says, or one line says what is wrong."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import described
import pytest
from campaign import campaign
from canary import STRANGER, is_one_line, nothing_happens, one_line_errors, plant
from hostile_toml import ANYTHING, CODE, GONE, put, read, spoilt, toml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from robench.attacks import build_attack
from robench.attacks.suites import load_suite
from robench.errors import RobenchError, UsageError
from robench.records import AttackSpec, Suite
from robench.threat_models import NORMS, ThreatModel

BALLS = {"Linf": "8/255", "L2": "0.5", "L1": "12"}

PART = {"name": "part", "attack": "pgd", "params": {"steps": 3}}
INCLUDED: dict[str, list[dict[str, Any]] | None] = {
    "part.toml": [PART],
    "./part.toml": [PART],
    "strange.toml": None,
    "loop.toml": None,
    "suite.toml": None,
    "nothing": None,
}

PARAMS: dict[str, dict[str, list[Any]]] = {
    "pgd": {
        "steps": [1, 20, 0, 2.0, "3", True, 10**12],
        "relative_step_size": [0.25, 1, 0, -1, "x"],
        "step_size": [0.1, 1],
        "restarts": [2, 1e3],
        "random_start": [True, False, "no", 0],
        "loss": ["ce", "dlr", "cross", 3],
        "colour": [1],
        "name": ["x"],
    },
    "apgd": {
        "steps": [5],
        "loss": ["ce", "dlr-targeted"],
        "targets": [3, 0],
        "eot": [2, "2"],
        "shrinking_eps": [True, "yes"],
    },
    "fab": {"steps": [4], "targets": [0, 2, -1], "restarts": [1]},
    "square": {"queries": [30, 1.5], "initial_share": [0.5, 0, 2], "rescale_schedule": [False, 1]},
    "cw-l2": {"rounds": [2], "steps": [3], "learning_rate": [0.1, 0], "confidence": [0, -1]},
    "fmn": {"steps": [4], "step_size": [1.0, -1], "shrinkage": [0.05, 1]},
    "ddn": {"steps": [4], "initial_norm": [0.5, "x"], "shrinkage": [0.05, 1]},
    "grid-pgd": {"steps": [4], "loss": ["ce", "cross"]},
    "pma": {"steps": [4, 1], "relative_step_size": [1.0]},
}
NAMES = st.sampled_from(["a", "b", "pgd-20", "clean", "A.b+c", "a b", "", "../x", "a" * 101])
NORM_LISTS = st.lists(st.sampled_from(NORMS), min_size=1, max_size=3, unique=True)


@st.composite
def params(draw: st.DrawFn, attack: str) -> dict[str, Any]:
    known = PARAMS.get(attack, {"x": [1]})
    names = draw(st.lists(st.sampled_from(sorted(known)), max_size=2, unique=True))
    return {name: draw(st.sampled_from(known[name][: draw(st.integers(1, 8))])) for name in names}


@st.composite
def entries(draw: st.DrawFn, number: str, stage: bool = False) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": f"{draw(st.sampled_from(['x', 'y']))}{number}"}
    kind = "attack" if stage else draw(st.sampled_from(["attack", "attack", "cascade", "include"]))
    if kind == "include":
        return {"include": draw(st.sampled_from([*sorted(INCLUDED), "part.toml", "part.toml"]))}
    if draw(st.booleans()):
        entry["norms"] = draw(NORM_LISTS)
    if kind == "cascade":
        count = draw(st.integers(1, 3))
        entry["stages"] = [draw(entries(f"{n}", stage=True)) for n in range(count)]
        if count > 1 and draw(st.booleans()):
            entry["audit"] = {"first_stage": draw(st.integers(1, count)), "fraction": 0.5}
        return entry
    attack = draw(st.sampled_from(sorted(PARAMS)))
    entry["attack"] = attack
    if draw(st.booleans()):
        entry["params"] = draw(params(attack))
    if draw(st.integers(0, 5)) == 0:
        entry["output"] = draw(st.sampled_from(["aux*", "[", "", "*" * 20]))
    return entry


ATTACKS = st.sampled_from(
    [
        *(
            *CODE,
            f"{STRANGER}:Attack",
            f"{STRANGER}.x:Attack",
            "pdg",
            "PGD",
            "cascade",
            "",
            ":",
            "a:b:c",
        ),
        *("pgd:", "pyautoattack:standard", "pyautoattack:x", "no_such:Thing"),
    ]
)
FIELDS = ["name", "attack", "params", "norms", "output", "stages", "audit", "include", "colour"]
HEADS = ["name", "version", "description", "schema_version", "attacks", "colour"]


@st.composite
def places(draw: st.DrawFn) -> tuple[str | int, ...]:
    place: list[str | int] = ["attacks", draw(st.integers(0, 1))]
    where = draw(st.sampled_from(["head", "entry", "entry", "stage", "params", "audit"]))
    if where == "head":
        return (draw(st.sampled_from(HEADS)),)
    if where == "stage":
        place += ["stages", draw(st.integers(0, 1))]
    if where == "params":
        return (*place, "params", draw(st.sampled_from(["steps", "loss", "x"])))
    if where == "audit":
        audit = ["fraction", "minimum", "first_stage", "x"]
        return (*place, "audit", draw(st.sampled_from(audit)))
    return (*place, draw(st.sampled_from(FIELDS)))


@st.composite
def files(draw: st.DrawFn, art: bool = False) -> str:
    """The text of a suite; ``art``, which takes seconds to import, is not for the quick test."""
    content: dict[str, Any] = {}
    for name, values in {
        "name": NAMES,
        "version": st.sampled_from([1, 7, 0]),
        "description": st.sampled_from(["", "café", "\x1b[2J", "=1"]),
        "schema_version": st.sampled_from([1, 1, 1, 2]),
    }.items():
        if draw(st.integers(0, 3)) == 0:
            content[name] = draw(values)
    content["attacks"] = [draw(entries(f"{n}")) for n in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(places())
        put(content, place, draw(ANYTHING | ATTACKS | NAMES | st.just(GONE)))
    if art and draw(st.integers(0, 9)) == 0:
        put(content, ("attacks", 0, "attack"), draw(st.sampled_from(["art:Nothing", "art:"])))
    text = toml(copy.deepcopy(content))
    return draw(spoilt(text)) if draw(st.integers(0, 9)) == 0 else text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made: Path = tmp_path_factory.mktemp("suites")
    (made / "part.toml").write_text(toml({"attacks": [PART]}))
    code = {"name": "s", "attack": f"{STRANGER}:Attack"}
    (made / "strange.toml").write_text(toml({"attacks": [code]}))
    (made / "loop.toml").write_text(toml({"attacks": [{"include": "loop.toml"}]}))
    plant(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        patch.chdir(made)
        _look_for("nothing")
        yield made


@pytest.fixture(scope="module")
def art(folder: Path) -> None:
    """Imported once, at the first suite that names it, it is no stranger's."""
    _look_for("art:Nothing")


def _look_for(attack: str) -> None:
    with pytest.raises(RobenchError):
        build_attack(AttackSpec(name="a", attack=attack), ThreatModel.of("Linf", "0.1"))


_TARGET = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*"


def _is_code(attack: str) -> bool:
    head = attack.partition(":")[0]
    found = head.partition(".")[0] in ("os", "builtins", "json", STRANGER) or "." in head
    return re.fullmatch(_TARGET, attack) is not None and found


def check(text: str, folder: Path) -> None:
    path = folder / "suite.toml"
    path.write_bytes(text.encode())
    content = read(text)
    try:
        if content is None:
            raise described.RefusedError
        wanted = described.suite(content, INCLUDED)
        for entry in wanted["attacks"]:
            for stage in entry.get("stages") or [entry]:
                if _is_code(stage.get("attack", "")):
                    raise described.RefusedError
    except described.RefusedError:
        event("refused")
        with nothing_happens(), pytest.raises(UsageError) as raised:
            load_suite(path)
        is_one_line(raised.value)
        if "include" not in text:
            assert str(path) in str(raised.value)
        return
    event("read")
    with nothing_happens():
        suite = load_suite(path)
    told = suite.model_dump(exclude_unset=True)
    if "name" not in wanted:
        del told["name"]
    assert suite.name == wanted.get("name", "suite")
    assert described.typed(told) == described.typed(wanted)
    assert Suite.model_validate_json(suite.model_dump_json()) == suite
    for norm in NORMS:
        _build(suite, wanted, norm)


def _build(suite: Suite, wanted: dict[str, Any], norm: Any) -> None:
    expected = []
    for entry in wanted["attacks"]:
        fitting = norm in described.norms_of(entry)
        stages = [s for s in entry.get("stages", []) if norm in described.norms_of(s)]
        if fitting and (stages or "stages" not in entry or not entry["stages"]):
            expected.append((entry["name"], [s["name"] for s in stages], _audited(entry, norm)))
    specs = suite.for_norm(norm)
    told = [
        (
            s.name,
            [x.name for x in s.stages],
            s.stages[s.audit.first_stage].name if s.audit else None,
        )
        for s in specs
    ]
    assert told == expected
    threat = ThreatModel.of(norm, BALLS[norm])
    for spec in specs:
        for stage in spec.stages or (spec,):
            attack: Any = None
            with contextlib.suppress(RobenchError), nothing_happens(), one_line_errors():
                attack = build_attack(stage, threat)
            for name, value in stage.params.items() if attack is not None else ():
                assert described.typed(getattr(attack, name)) == described.typed(value)
                assert not (isinstance(value, str) and name != "loss"), (
                    "a text in place of a number"
                )


def _audited(entry: dict[str, Any], norm: str) -> str | None:
    """The first stage that only the audit runs, if others run before it on all samples."""
    if "audit" not in entry:
        return None
    first = entry["audit"]["first_stage"]
    fits = [norm in described.norms_of(stage) for stage in entry["stages"]]
    after = [s["name"] for s, f in zip(entry["stages"], fits, strict=True) if f][
        sum(fits[:first]) :
    ]
    return after[0] if any(fits[:first]) and after else None


@settings(max_examples=25, deadline=None)
@given(text=files())
def test_a_suite_is_read_as_it_is_written_or_refused_in_one_line(text: str, folder: Path) -> None:
    check(text, folder)


@pytest.mark.usefixtures("art")
@campaign(text=files(art=True))
def test_of_many_suites_all_are_read_or_refused(text: str, folder: Path) -> None:
    check(text, folder)
