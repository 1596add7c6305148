"""Verified samples beside the records of attacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from invoke_cli import invoke
from torch import nn

from robench.api import evaluate, judge
from robench.datasets import ArrayDataset
from robench.errors import ContradictionError
from robench.models import wrap_module
from robench.records import AttackSpec, Bounds, Flag, Suite
from robench.reporting.board import board_text
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.page import build_page
from robench.results import Store
from robench.results.bounds import check_bounds, known_bounds, write_bounds
from robench.threat_models import ThreatModel
from robench.validity.verified import best_known_acc, stored_bounds, verified_acc, verify

_THREAT = ThreatModel.of("Linf", "0.1")
SUITE = Suite(name="one", attacks=(AttackSpec(name="pgd", attack="pgd", params={"steps": 10}),))
DRAWS = Flag(name="randomised", severity="warning", evidence="")


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Two classes, z = ±4 (mean − ½): sample k is as far from the border as its mean is from ½."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 4))
        network[1].bias.copy_(torch.tensor([2.0, -2.0]))
    means = torch.tensor([0.2, 0.38, 0.45, 0.52, 0.62, 0.58, 0.8])
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 1])  # the last but one is a clean error
    dataset = ArrayDataset(
        means.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), labels, num_classes=2
    )
    model = wrap_module(
        network, num_classes=2, name="linear", threat_model="Linf-0.1", input={"channels": 1}
    )
    folder = tmp_path_factory.mktemp("linear")
    evaluate(model, dataset, SUITE, device="cpu", results=folder)
    return model, dataset, Store(folder)


def _verified(bounds: Bounds) -> list[bool]:
    return [sample.verified for sample in bounds.samples]


def _all_verified(bounds: Bounds, **other: Any) -> Bounds:
    """As a fault in the bounds would have it."""
    rows = [
        sample.model_copy(update={"verified": True, "lowest_margin": sample.clean_margin})
        if (sample.clean_margin or 0) > 0
        else sample
        for sample in bounds.samples
    ]
    return bounds.model_copy(update={"samples": tuple(rows), **other})


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_bounds_and_attacks_meet_on_a_linear_network(linear, method) -> None:
    model, dataset, store = linear
    bounds = verify(model, dataset, _THREAT, method)
    assert _verified(bounds) == [True, True, False, False, True, False, True]
    expected = [8 * (abs(m - 0.5) - 0.1) for m in (0.2, 0.38, 0.45, 0.52, 0.62)]
    assert [s.lowest_margin for s in bounds.samples[:5]] == pytest.approx(expected, abs=1e-5)
    assert verified_acc(bounds).estimate == pytest.approx(100 * 4 / 7)
    attacked = best_known_acc(bounds, list(store.records()))
    assert attacked is not None
    assert attacked.estimate == verified_acc(bounds).estimate


def test_a_verified_sample_that_was_broken_is_a_fault(linear) -> None:
    model, dataset, store = linear
    records = list(store.records())
    wrong = _all_verified(verify(model, dataset, _THREAT, "ibp"))
    with pytest.raises(ContradictionError, match="2 samples are verified by ibp"):
        check_bounds(records, [wrong])
    with pytest.raises(ContradictionError):
        build_leaderboard(records, bounds=[wrong])
    # A break in a smaller ball contradicts as well; one in a larger ball does not.
    larger, smaller = (ThreatModel.of("Linf", eps) for eps in ("0.2", "0.01"))
    with pytest.raises(ContradictionError):
        check_bounds(records, [_all_verified(wrong, threat_model=larger)])
    check_bounds(records, [_all_verified(wrong, threat_model=smaller)])
    # Of a model that draws, a verdict is no proof.
    drawn = [replace(r, record=r.record.model_copy(update={"flags": (DRAWS,)})) for r in records]
    check_bounds(drawn, [wrong])


def test_a_run_stops_where_it_breaks_what_is_verified(linear, tmp_path) -> None:
    model, dataset, _ = linear
    wrong = _all_verified(verify(model, dataset, _THREAT, "ibp"))
    write_bounds(Store(tmp_path), wrong)
    with pytest.raises(ContradictionError, match="fault of robench"):
        evaluate(model, dataset, SUITE, device="cpu", results=tmp_path)
    # What was found is kept, to look into.
    assert len(list(Store(tmp_path).records())) == 1
    adv_inputs = torch.full_like(dataset.batch(range(7)), 0.5)
    moved = dataset.batch(range(7)) + (adv_inputs - dataset.batch(range(7))).clamp(-0.1, 0.1)
    with pytest.raises(ContradictionError):
        judge(model, moved * 1.001, dataset, device="cpu", results=tmp_path)


def test_the_last_batch_is_as_the_others(linear, monkeypatch) -> None:
    model, dataset, _ = linear
    whole = verify(model, dataset, _THREAT, "crown")
    monkeypatch.setattr("robench.validity.verified._BATCH", 3)
    parts = verify(model, dataset, _THREAT, "crown")
    assert _verified(parts) == _verified(whole)
    lowest = [[sample.lowest_margin for sample in b.samples] for b in (parts, whole)]
    assert lowest[0] == pytest.approx(lowest[1])


def test_bounds_are_kept_and_read_as_they_were(linear, tmp_path, caplog) -> None:
    model, dataset, _ = linear
    store = Store(tmp_path)
    made = stored_bounds(model, dataset, _THREAT, "ibp", store, [])
    assert known_bounds(store) == [made]
    assert stored_bounds(model, dataset, _THREAT, "ibp", store, []) == made
    (path,) = (tmp_path / "bounds").glob("*.json")
    path.write_text(path.read_text().replace('"verified": false', '"verified": true'))
    assert known_bounds(store) == []
    assert "checksum is wrong" in caplog.text
    again = stored_bounds(model, dataset, _THREAT, "ibp", store, [])
    assert _verified(again) == _verified(made)
    assert len(known_bounds(store)) == 1


def test_the_leaderboard_shows_what_is_verified_where_all_of_a_row_is_bounded(linear) -> None:
    model, dataset, store = linear
    records = list(store.records())
    assert "verified_acc" not in build_leaderboard(records)
    bounds = verify(model, dataset, _THREAT, "ibp")
    frame = build_leaderboard(records, bounds=[bounds])
    assert frame["verified_acc"].tolist() == pytest.approx([100 * 4 / 7])
    columns = list(frame.columns)
    assert columns.index("verified_acc") == columns.index("best_known_acc") + 1
    assert "verified %" in build_page(frame)
    assert "verified" in board_text(frame)
    # What holds in a larger ball holds in this one; of a smaller ball nothing follows.
    larger = verify(model, dataset, ThreatModel.of("Linf", "0.11"), "ibp")
    again = build_leaderboard(records, bounds=[larger])
    assert again["verified_acc"].tolist() == frame["verified_acc"].tolist()
    smaller = verify(model, dataset, ThreatModel.of("Linf", "0.01"), "ibp")
    assert "verified_acc" not in build_leaderboard(records, bounds=[smaller])
    # Of some of the row's samples, and of numbered samples of other data.
    assert "verified_acc" not in build_leaderboard(
        records, bounds=[verify(model, dataset.subset(3), _THREAT, "ibp")]
    )


def test_targeted_records_bound_from_above_too(linear, tmp_path) -> None:
    model, dataset, _ = linear
    evaluate(
        model, dataset, SUITE, threat_model="Linf-0.1-targeted-next", device="cpu", results=tmp_path
    )
    bounds = verify(model, dataset, _THREAT, "ibp")
    attacked = best_known_acc(bounds, list(Store(tmp_path).records()))
    assert attacked is not None
    assert attacked.estimate == pytest.approx(100 * 4 / 7)


def test_the_command(tmp_path) -> None:
    file = tmp_path / "bounds.csv"
    arguments = ("verify-bounds", "standard", "--dataset", "digits", "--n", 3)
    common = ("--method", "ibp", "--results", tmp_path, "--json")
    result = invoke(*arguments, "--eps", "0,0.001", *common, "--csv", file)
    assert result.code == 0, result.err
    clean, line = result.json
    assert (line["n"], line["method"], line["best_known_acc"]) == (3, "ibp", None)
    assert line["verified_acc"] <= line["clean_acc"]
    assert (clean["under"], line["under"]) == ("Linf-0", "Linf-0.001")
    assert clean["verified_acc"] == clean["best_known_acc"] == line["clean_acc"]
    header, *rows = file.read_text().splitlines()
    assert header.startswith("sample_id,label,clean_margin,lowest_margin,verified")
    assert len(rows) == 3
    again = invoke(*arguments, "--eps", "0.001", *common)
    assert again.json == [line]


def test_what_cannot_be_bounded_is_said(tmp_path) -> None:
    arguments = ("verify-bounds", "vit-pgd-at", "--n", 2, "--results", tmp_path)
    result = invoke(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "there are no bounds for the operation" in result.err
    assert "crown-ibp" in invoke(*arguments, "--method", "crownibp").err


@pytest.mark.parametrize(
    "norm, eps, attack",
    [("Linf", "0.05", "pgd"), ("L2", "0.1", "pgd"), ("L1", "0.2", "apgd")],
)
def test_on_linear_networks_bounds_attack_and_closed_form_are_one_number(norm, eps, attack) -> None:
    """z₁ − z₀ = 2(w·x + b), whose lowest value in the ball is at the centre less 2ε times the
    dual norm of w."""
    weight = torch.tensor([3.0, -1.0, 2.0, 0.5])
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([-weight, weight]))
        network[1].bias.copy_(torch.tensor([0.5, -0.5]))
    inputs = 0.5 + 0.2 * torch.tensor([[0.5, -0.3, 1, 0], [1, 0, 0.2, 0.7], [0.6, 0.1, 0.9, -1]])
    data = ArrayDataset(inputs.view(3, 1, 2, 2), torch.ones(3, dtype=torch.int64), num_classes=2)
    threat = ThreatModel.of(norm, eps)
    dual = torch.linalg.vector_norm(weight, {"Linf": 1, "L2": 2, "L1": torch.inf}[norm])
    closed = (2 * (inputs @ weight - 0.5 - threat.radius * dual)).tolist()
    assert min(closed) > 0
    model = wrap_module(
        network, num_classes=2, name="linear", threat_model=str(threat), input={"channels": 1}
    )
    for method in ("ibp", "crown-ibp", "crown"):
        lowest = [sample.lowest_margin for sample in verify(model, data, threat, method).samples]
        assert lowest == pytest.approx(closed, abs=1e-5)
    spec = AttackSpec(name="it", attack=attack, params={"steps": 100})
    (stored,) = evaluate(model, data, Suite(name="it", attacks=(spec,)), device="cpu")
    reached = stored.table.set_index("sample_id").loc[list(data.sample_ids), "adv_margin"]
    assert reached.tolist() == pytest.approx(closed, abs=1e-5)
