"""Papers' tables beside what was measured, and why the two differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from invoke_cli import invoke
from record_factory import make_record, make_samples

from robench.errors import UnknownNameError
from robench.models.zoo import find_card
from robench.records.cards import ArchitectureSpec
from robench.reproduction import PAPERS, exit_code, reproduce_paper
from robench.reproduction.papers import Measured, PaperTable, _papers
from robench.results import Store
from robench.threat_models import ThreatModel

ANCRA = "digits/Linf-0.2/ancra"


def test_every_paper_says_where_its_figures_are_from() -> None:
    assert set(_papers()) == set(PAPERS)
    for name, paper in _papers().items():
        assert paper.link.startswith("https://arxiv.org/abs/"), name
        assert "https://github.com/" in paper.source
        for row in paper.rows:
            assert row.figures or row.asked
            assert all(0 < figure < 100 for figure in row.figures.values())


@pytest.mark.parametrize("name", PAPERS)
def test_the_command_prints_table_measurements_and_reasons(name: str, tmp_path: Path) -> None:
    done = invoke("reproduce", name, "--results", tmp_path)
    assert done.code == 2, "digits are not the paper's data, so nobody can tell"
    assert "Figures: " in done.out
    for words in (
        f"digits/Linf-0.2/{name} (its card: robench run",
        "data: digits in place of cifar10",
    ):
        assert words in done.out
    assert f"cifar10-jpeg/Linf-8_255/resnet10-{name}" in done.out
    found = invoke("reproduce", name, "--results", tmp_path, "--json")
    assert {item["verdict"] for item in found.json} == {"cannot tell"}
    assert all(item["why"] for item in found.json)


def test_reasons_are_computed_of_card_and_paper(tmp_path: Path) -> None:
    table = reproduce_paper("ancra", tmp_path / "none")
    (model,) = [m for m in table.measured if m.card.id == ANCRA]
    said = list(table.reasons(model))
    assert said[1] == "ball: Linf-0.2 in place of Linf-8/255"
    assert said[2].startswith(
        "network: digits_resnet_ra (width 16, blocks 4, masked 2) in place of"
    )
    assert said[3] == "training: 30 epochs in place of 120"
    assert said[4].startswith(
        "samples: 500, so that 77.2 % stands for anything from 73.3 to 80.7 %"
    )
    assert len(said) == 5
    table = reproduce_paper("agkd-bml", tmp_path / "none")
    assert (
        "not measured here: fgsm_acc, pgd_100_acc, cw_acc"
        in list(table.reasons(table.measured[0]))[-1]
    )


def test_records_go_before_the_card(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    samples = make_samples("SSBBBC")
    for attack in ("fgsm", "pgd-20"):
        store.write(make_record(samples, model="ancra", attack=attack, defense="ancra"), samples)
    table = reproduce_paper("ancra", store.folder)
    (model,) = [m for m in table.measured if m.card.id == ANCRA]
    assert model.n == 6
    assert model.source == f"records in {store.folder}"
    assert model.figures["fgsm_acc"] == model.figures["robust_acc"] == pytest.approx(100 / 3)
    assert "20,000 weights" in model.network


@pytest.mark.parametrize("measured, verdict, code", [(59.0, "agrees", 0), (40.0, "differs", 1)])
def test_on_the_papers_own_data_and_network_its_figure_agrees_or_differs(
    measured: float, verdict: str, code: int
) -> None:
    located = find_card(ANCRA)
    same = {
        "dataset": "cifar10",
        "threat_model": ThreatModel.parse("Linf-8/255"),
        "architecture": ArchitectureSpec(name="resnet18_ra"),
    }
    located = replace(located, card=located.card.model_copy(update=same))
    row = _papers()["ancra"].rows[0]
    paper = _papers()["ancra"].model_copy(update={"rows": (row,)})
    figures = {"clean_acc": 85.0, "autoattack_acc": measured}
    table = PaperTable("ancra", paper, (Measured(located, 1000, figures, "here"),))
    clean, robust = table.findings()
    assert (clean.verdict, robust.verdict) == ("agrees", verdict)
    assert exit_code([clean, robust]) == code


def test_an_unknown_paper_lists_near_misses() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ancra'"):
        reproduce_paper("acnra")
