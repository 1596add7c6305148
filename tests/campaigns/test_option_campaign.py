"""Any values of the options of ``robench run``: what is prepared is what they say, or one line says
which of them makes no sense; nothing is run and nothing is written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import described
import numpy as np
import pytest
import torch
from campaign import campaign
from canary import STRANGER, is_text, nothing_happens, plant
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from invoke_cli import invoke
from safetensors.torch import save_file

import robench.api
from robench.errors import UsageError
from robench.models.architectures.resnet import DigitsResNet
from robench.preparation import Prepared
from robench.request import Request

torch.manual_seed(0)
NETWORK = DigitsResNet(num_classes=3, width=2).eval()
INPUTS = np.random.default_rng(0).random((6, 1, 4, 4), dtype=np.float32)
SAMPLES = 6

LITERALS: dict[str, Any] = {
    "0": 0,
    "1": 1,
    "2": 2,
    "-1": -1,
    "0.5": 0.5,
    ".5": 0.5,
    "5.": 5.0,
    "-.25": -0.25,
    "1e-1": 0.1,
    "2e0": 2.0,
    "1e999": math.inf,
    "nan": "nan",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "٣": "٣",
    "1_0": "1_0",
    "0x10": "0x10",
    "": "",
    "grey": "grey",
    "a=b": "a=b",
    "true": True,
    "False": False,
    "no": False,
    "on": True,
    "None": None,
    "null": None,
    '"no"': "no",
    '"2"': "2",
    "'2'": "'2'",
    "0.1,0.2": [0.1, 0.2],
    "[0.5]": [0.5],
    "[1,": ["[1", ""],
    "{}": {},
    '{"a": 1}': {"a": 1},
    "RGB": "RGB",
    "BGR": "BGR",
    "rgb": "rgb",
    "os:system": "os:system",
    f"{STRANGER}:build": f"{STRANGER}:build",
    "../../etc/passwd": "../../etc/passwd",
    "\x1b[2J": "\x1b[2J",
    "[" * 3000: "[" * 3000,
    "9" * 400: int("9" * 400),
}
"""A text that may be typed after NAME= → its value, by hand."""

NUMBERS = ["0", "1", "2", "6", "7", "-1", "1.5", "x", "", "1e2", " 3 ", "9" * 30, "nan", "--help"]
RADII = [
    *(
        "8/255",
        "0.5",
        ".5",
        "1",
        "1.",
        "2",
        " 8 / 255 ",
        "0.5/255",
        "0",
        "0/1",
        "1/0",
        "-1",
        "8",
        "1e-3",
    ),
    *(
        "nan",
        "inf",
        "",
        "/",
        "8/",
        "٨/255",
        "9" * 150,
        f"0.{'0' * 13}1",
        f"1{'0' * 10}",
        "0x1",
        "8//9",
    ),
    *(
        "0,1/255",
        "1/255,2/255",
        "2/255,1/255",
        "1/255,1/255",
        "0,",
        ",",
        "Linf-0.1",
        "0.1,x",
        "0,0.1,2",
    ),
]
NORMS = ["Linf", "linf", "inf", " l2 ", "2", "L1", "L3", "", "Linf,L2", "none", "\x00", "ＬＩＮＦ"]

FIELDS = ["channels", "low", "high", "mean", "std", "channel_order", "size", "colour", ""]


def pairs(names: list[str]) -> st.SearchStrategy[list[tuple[str, str]]]:
    literal = st.sampled_from(sorted(LITERALS))
    return st.lists(st.tuples(st.sampled_from(names), literal), max_size=3)


ARGUMENTS = pairs(["width", "colour", "num_classes", "norm_layer"]) | st.sampled_from(
    # No literal of thousands of digits: so many blocks are built.
    [[("blocks", text)] for text in ("1", "0", "2", "-1", "grey", "0.5", "None")]
)

SENSIBLE = st.sampled_from(
    [
        *([("mean", "0.5")], [("mean", ".5"), ("std", "0.5")], [("low", "-1")], [("high", "2")]),
        *([("channel_order", "BGR")], [("low", "-1"), ("high", "2e0")], [("std", "[0.5]")], []),
    ]
)


@st.composite
def commands(draw: st.DrawFn) -> dict[str, Any]:
    """Option → the text that is typed after it, or pairs of name and text."""
    chosen: dict[str, Any] = {"--eps": draw(st.sampled_from(RADII[:6] + RADII))}
    single = {
        "--norm": st.sampled_from(NORMS),
        "--n": st.sampled_from(NUMBERS),
        "--seed": st.sampled_from([*NUMBERS, str(2**63 - 1), str(2**63)]),
        "--batch-size": st.sampled_from(NUMBERS),
        "--workers": st.sampled_from(NUMBERS),
        "--precision": st.sampled_from(["auto", "fp32", "fp64", "", "FP32"]),
        "--device": st.sampled_from(["cpu", "auto", "gpu", "", "cuda:x", "cpu:", "mps:9"]),
        "--split": st.sampled_from(["test", "x", ""]),
        "--suite": st.sampled_from(["quick", "nothing", "a" * 5000, "a\x00", f"{STRANGER}:x", "/"]),
    }
    for option in draw(st.lists(st.sampled_from(sorted(single)), max_size=3, unique=True)):
        chosen[option] = draw(single[option])
    if draw(st.booleans()):
        chosen["--input"] = draw(SENSIBLE | pairs(FIELDS))
    if draw(st.integers(0, 3)) == 0:
        chosen["--arch-arg"] = draw(ARGUMENTS)
    if draw(st.integers(0, 5)) == 0:
        chosen["--forward"] = draw(pairs(["output", "arguments", "outputs", "x"]))
    if draw(st.integers(0, 3)) == 0:
        chosen["--dataset-option"] = draw(
            pairs(["name", "num_classes", "white", "class_names", "x"])
        )
    return chosen


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Prepared]]:
    """What the last command prepared, in place of running it; the current folder has the files."""
    folder: Path = tmp_path_factory.mktemp("options")
    save_file(
        {k: v.contiguous() for k, v in NETWORK.state_dict().items()}, folder / "w.safetensors"
    )
    np.savez(folder / "d.npz", inputs=INPUTS, labels=np.arange(SAMPLES) % 3)
    plant(folder)
    made: list[Prepared] = []
    real = robench.api.prepare

    def prepare(request: Request) -> Prepared:
        made.append(real(request))
        raise UsageError("prepared")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robench.api, "prepare", prepare)
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        invoke(*_arguments({"--eps": "0.1"}))
        yield made


def _arguments(chosen: dict[str, Any]) -> list[str]:
    given = ["run", "w.safetensors", "--arch=digits_resnet", "--dataset=d.npz", "--results=out"]
    if "--suite" not in chosen:
        given.append("--suite=quick")
    for option, value in chosen.items():
        if isinstance(value, str):
            given.append(f"{option}={value}")
        else:
            given += [f"{option}={name}={text}" for name, text in value]
    if not any(name == "width" for name, _ in chosen.get("--arch-arg", [])):
        given.append("--arch-arg=width=2")
    return given


def _whole(chosen: dict[str, Any], option: str, least: int, most: float) -> int | None:
    if option not in chosen:
        return None
    try:
        number = int(chosen[option])
    except ValueError as error:
        raise described.RefusedError from error
    if not least <= number <= most:
        raise described.RefusedError
    return number


def _balls(chosen: dict[str, Any]) -> list[str]:
    kind = described.norm(chosen.get("--norm", "Linf"))
    written = chosen["--eps"].split(",")
    values: list[Fraction] = [described.radius(text) for text in written]
    if any(value >= then for value, then in itertools.pairwise(values)):
        raise described.RefusedError
    rest = written[1:] if len(written) > 1 and values[0] == 0 else written
    return [described.ball(kind, text) for text in rest]


def _values(chosen: dict[str, Any], option: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in chosen.get(option, []):
        if not name or name in found:
            raise described.RefusedError
        found[name] = LITERALS[text]
    return found


def wanted(chosen: dict[str, Any]) -> dict[str, Any]:
    """What is to be prepared."""
    for option, words in {
        "--precision": ("auto", "fp32"),
        "--device": ("cpu", "auto"),
        "--suite": ("quick",),
    }.items():
        if chosen.get(option, words[0]) not in words:
            raise described.RefusedError
    if _values(chosen, "--arch-arg") not in (
        {},
        {"width": 2},
        {"blocks": 1},
        {"width": 2, "blocks": 1},
    ):
        raise described.RefusedError
    if any(type(value) is not int for value in _values(chosen, "--arch-arg").values()):
        raise described.RefusedError
    given = {
        name: value
        for name, value in _values(chosen, "--input").items()
        if value is not None or name not in ("mean", "std", "size")  # None: not given
    }
    spec = described.input_spec({"channels": 1, **given})
    if spec["channels"] != 1:
        raise described.RefusedError
    return {
        "threats": _balls(chosen),
        "n": _whole(chosen, "--n", 1, SAMPLES) or SAMPLES,
        "seed": _whole(chosen, "--seed", 0, 2**63 - 1) or 0,
        "batch_size": _whole(chosen, "--batch-size", 1, math.inf),
        "workers": _whole(chosen, "--workers", 1, math.inf),
        "input": spec,
    }


def check(chosen: dict[str, Any], prepared: list[Prepared]) -> None:
    prepared.clear()
    with nothing_happens():
        done = invoke(*_arguments(chosen))
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("robench: error: ")
    assert is_text(done.err.removesuffix("\n")), done.err
    assert "unexpected" not in done.err, done.err
    # Of these it is not said here what is right: whatever is prepared has to be what the rest says.
    open_ended = {"--forward", "--dataset-option", "--split"} & chosen.keys()
    try:
        expected = wanted(chosen)
    except described.RefusedError:
        event("refused")
        assert not prepared, "this makes no sense and was prepared"
        return
    event("prepared" if prepared else "refused for what is left open")
    if not prepared:
        assert open_ended, done.err
        return
    (one,) = prepared
    request = one.request
    told = {name: getattr(request, name) for name in ("seed", "batch_size", "workers")}
    assert told == {name: expected[name] for name in told}
    assert [str(item.threat) for item in one.planned] == expected["threats"]
    spec = expected["input"]
    for item in one.planned:
        assert len(item.dataset) == expected["n"]
        found = item.model.input_spec.model_dump(exclude_none=True)
        assert {name: found[name] for name in spec} == {
            name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()
        }
        if "--forward" in chosen or "--dataset-option" in chosen:
            continue
        low, high = spec.get("low", 0.0), spec.get("high", 1.0)
        mean, std = spec.get("mean", [0.0])[0], spec.get("std", [1.0])[0]
        inputs = item.dataset.batch(range(expected["n"]))
        assert {tuple(map(tuple, x)) for x in inputs.flatten(1)[:, None].tolist()} <= {
            tuple(map(tuple, x)) for x in torch.from_numpy(INPUTS).flatten(1)[:, None].tolist()
        }
        with torch.no_grad():
            fed = ((low + inputs.double() * (high - low) - mean) / std).float()
            torch.testing.assert_close(item.model(inputs), NETWORK(fed), rtol=1e-3, atol=1e-3)


@settings(max_examples=8, deadline=None)
@example(chosen={"--eps": "0.1", "--arch-arg": [("width", "1e999")]})  # pydantic's own error
@example(
    chosen={"--eps": "0.1", "--dataset-option": [("class_names", "[" * 3000)]}
)  # a RecursionError
@example(chosen={"--eps": "0.1", "--forward": [("output", "grey")]})  # torch's own warning
@example(chosen={"--eps": "9" * 5000})  # a ValueError of int's, for so many digits
@example(chosen={"--eps": f"0.{'0' * 400}1", "--norm": "L2"})  # a radius of 0
@example(chosen={"--eps": "8/255", "--norm": ""})  # taken for none at all
@given(chosen=commands())
def test_options_say_what_is_prepared_or_are_refused(
    chosen: dict[str, Any], prepared: list[Prepared]
) -> None:
    check(chosen, prepared)


@campaign(chosen=commands())
def test_of_many_options_all_are_prepared_or_refused(
    chosen: dict[str, Any], prepared: list[Prepared]
) -> None:
    check(chosen, prepared)
