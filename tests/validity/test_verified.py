"""Verified samples beside the records of attacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from invoke_cli import invoke
from torch import nn

from robench.api import evaluate
from robench.datasets import ArrayDataset
from robench.models import wrap_module
from robench.results import Store
from robench.threat_models import ThreatModel
from robench.validity.verified import ContradictionError, verify

_THREAT = ThreatModel.of("Linf", "0.1")


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
    evaluate(model, dataset, "quick", device="cpu", results=folder)
    return model, dataset, Store(folder)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_bounds_and_attacks_meet_on_a_linear_network(linear, method) -> None:
    model, dataset, store = linear
    verified = verify(model, dataset, _THREAT, method)
    assert verified.table["verified"].tolist() == [True, True, False, False, True, False, True]
    expected = [8 * (abs(m - 0.5) - 0.1) for m in (0.2, 0.38, 0.45, 0.52, 0.62)]
    assert verified.table["lowest_margin"].tolist()[:5] == pytest.approx(expected, abs=1e-5)
    assert verified.verified_acc.estimate == pytest.approx(100 * 4 / 7)
    attacked = verified.attacked(store.records())
    assert attacked is not None
    assert attacked.estimate == verified.verified_acc.estimate


def test_a_verified_sample_that_was_broken_is_a_fault(linear) -> None:
    model, dataset, store = linear
    verified = verify(model, dataset, _THREAT, "ibp")
    wrong = replace(verified, table=verified.table.assign(verified=True))
    with pytest.raises(ContradictionError, match="2 samples are verified and broken at once"):
        wrong.attacked(store.records())
    # A break in a smaller ball contradicts as well; one in a larger ball does not.
    with pytest.raises(ContradictionError):
        replace(wrong, threat=ThreatModel.of("Linf", "0.2")).attacked(store.records())
    assert replace(wrong, threat=ThreatModel.of("Linf", "0.05")).attacked(store.records()) is None


def test_the_last_batch_is_as_the_others(linear, monkeypatch) -> None:
    model, dataset, _ = linear
    whole = verify(model, dataset, _THREAT, "crown").table
    monkeypatch.setattr("robench.validity.verified._BATCH", 3)
    parts = verify(model, dataset, _THREAT, "crown").table
    assert parts.drop(columns="lowest_margin").equals(whole.drop(columns="lowest_margin"))
    assert parts["lowest_margin"].tolist() == pytest.approx(whole["lowest_margin"].tolist())


def test_the_command(tmp_path) -> None:
    file = tmp_path / "bounds.csv"
    arguments = ("verify-bounds", "standard", "--dataset", "digits", "--n", 3, "--eps", "0.001")
    result = invoke(*arguments, "--method", "ibp", "--results", tmp_path, "--csv", file, "--json")
    assert result.code == 0, result.err
    (line,) = result.json
    assert (line["n"], line["method"], line["best_known_acc"]) == (3, "ibp", None)
    assert line["verified_acc"] <= line["clean_acc"]
    header, *rows = file.read_text().splitlines()
    assert header.startswith("sample_id,label,clean_margin,lowest_margin,verified")
    assert len(rows) == 3


def test_what_cannot_be_bounded_is_said(tmp_path) -> None:
    arguments = ("verify-bounds", "vit-pgd-at", "--n", 2, "--results", tmp_path)
    result = invoke(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "there are no bounds for the operation" in result.err
    assert "crown-ibp" in invoke(*arguments, "--method", "crownibp").err
