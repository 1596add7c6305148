from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from robench.errors import UsageError
from robench.threat_models import NORMS, ThreatModel, parse_eps, parse_norm, parse_radii


@pytest.mark.parametrize(
    ("text", "norm"),
    [
        ("Linf", "Linf"),
        ("linf", "Linf"),
        ("LINF", "Linf"),
        ("inf", "Linf"),
        (" l2 ", "L2"),
        ("2", "L2"),
        ("l1", "L1"),
    ],
)
def test_norms_are_read_generously(text: str, norm: str) -> None:
    assert parse_norm(text) == norm


@pytest.mark.parametrize("text", ["L0", "", "L", "infinity", "Linf,L2"])
def test_other_norms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Use one of Linf, L2, L1"):
        parse_norm(text)


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        ("8/255", Fraction(8, 255), "8/255"),
        (" 8 / 255 ", Fraction(8, 255), "8/255"),
        ("0.2", Fraction(1, 5), "0.2"),
        (0.2, Fraction(1, 5), "0.2"),
        (".5", Fraction(1, 2), ".5"),
        (1, Fraction(1), "1"),
        (Fraction(4, 255), Fraction(4, 255), "4/255"),
        ("0.5/255", Fraction(1, 510), "0.5/255"),
        (1e-5, Fraction(1, 100_000), "0.00001"),  # Python writes it as 1e-05
    ],
)
def test_eps_is_kept_exactly_and_as_written(text: str, value: Fraction, written: str) -> None:
    assert parse_eps(text) == (value, written)


@pytest.mark.parametrize(
    "text",
    [
        *("", "eight", "-0.1", "8/", "/255", "8/0", "1e-3", "nan", "inf", "8//255", "0x1"),
        *("٨/٢٥٥", "8\u2003/255", "1" * 5000, float("nan"), float("-inf")),
    ],
)
def test_what_is_no_radius_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"Write it as 8/255 or 0\.2"):
        ThreatModel.of("Linf", text)


@pytest.mark.parametrize(
    ("eps", "written"),
    [
        ("8/255", ("8/255",)),
        ("0, 1/255,2 / 255", ("0", "1/255", "2/255")),
        ([0, "1/255", 0.5], ("0", "1/255", "0.5")),
        (Fraction(1, 4), ("1/4",)),
    ],
)
def test_a_list_of_radii_is_kept_as_written(eps: object, written: tuple[str, ...]) -> None:
    assert parse_radii(eps) == written  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("eps", "says"),
    [
        ("2/255,1/255", "do not rise: 1/255 follows 2/255"),
        ("1/255,2/510", "1/255 and 2/510 are one radius"),
        ([], "empty list"),
        ("1/255,", "eps '' is not a number"),
        ([0.1, float("nan")], "nan is not a number"),
        ("0.1,-0.2", "'-0.2' is not a number"),
        ("Linf-8/255,L2-0.5", "one. Write --norm Linf --eps 8/255"),
    ],
)
def test_lists_that_do_not_rise_or_are_of_no_radii(eps: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_radii(eps)  # type: ignore[arg-type]


def test_zero_in_a_list_is_no_threat() -> None:
    assert ThreatModel.each("L2", "0,0.5,1") == tuple(ThreatModel.of("L2", e) for e in ("0.5", 1))
    with pytest.raises(UsageError, match="must be positive"):
        ThreatModel.each("L2", [0])


@pytest.mark.parametrize("eps", ["0", "0/255", "0.0"])
def test_zero_is_no_radius(eps: str) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        ThreatModel.of("L2", eps)


@pytest.mark.parametrize("eps", ["1e-13", 1e-13, f"1{'0' * 10}", f"1/1{'0' * 90}"])
def test_a_radius_that_float32_cannot_hold_is_none(eps: str | float) -> None:
    """As a float the last one is 0, and what divides by it infinite."""
    if eps == "1e-13":
        eps = f"0.{'0' * 12}1"
    with pytest.raises(UsageError, match="between 1e-12 and 1e9"):
        ThreatModel.of("L2", eps)


def test_grey_levels_for_pixels_are_noticed() -> None:
    with pytest.raises(UsageError, match="8 grey levels is written 8/255"):
        ThreatModel.of("Linf", 8)
    assert ThreatModel.of("L2", 8).radius == 8.0
    assert ThreatModel.of("Linf", 1).radius == 1.0


def test_8_of_255_is_not_0_031() -> None:
    exact, rounded = ThreatModel.of("Linf", "8/255"), ThreatModel.of("Linf", "0.031")
    assert exact != rounded
    assert len({exact.slug, rounded.slug}) == len({exact.identity, rounded.identity}) == 2
    assert exact == ThreatModel.of("linf", "16/510")
    assert exact.identity == ThreatModel.of("linf", "16/510").identity
    assert hash(exact) == hash(ThreatModel.of("Linf", "16/510"))


@settings(deadline=None)
@given(st.sampled_from(NORMS), st.integers(1, 255), st.integers(255, 1000))
def test_every_form_reads_back(norm: str, numerator: int, denominator: int) -> None:
    threat_model = ThreatModel.of(norm, f"{numerator}/{denominator}")
    for text in (str(threat_model), threat_model.slug, threat_model.identity):
        again = ThreatModel.parse(text)
        assert again == threat_model
        assert again.radius == numerator / denominator
    assert "/" not in threat_model.slug


@pytest.mark.parametrize("text", ["Linf", "8/255", "", "Linf 8/255"])
def test_threat_models_have_a_dash(text: str) -> None:
    with pytest.raises(UsageError, match="Write it as Linf-8/255"):
        ThreatModel.parse(text)


def test_pydantic_reads_and_writes_them() -> None:
    class Holder(BaseModel):
        threat_model: ThreatModel

    holder = Holder.model_validate({"threat_model": "linf-8/255"})
    assert holder.threat_model == ThreatModel.of("Linf", "8/255")
    assert holder.model_dump_json() == '{"threat_model":"Linf-8/255"}'
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    with pytest.raises(ValidationError, match="must be positive"):
        Holder.model_validate({"threat_model": "Linf-0"})
