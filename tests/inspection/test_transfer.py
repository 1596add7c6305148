"""Inputs made for one model and judged on another: linear models, of which all is worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.errors import RobenchError, UnknownNameError, UsageError
from robench.evaluation.runner import Silent
from robench.inspection.transfer import Transfer
from robench.models import RobenchModel, wrap_module
from robench.reporting.contradictions import contradictions
from robench.reporting.explorer.contents import explorer_contents
from robench.reporting.leaderboard import build_leaderboard, read_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.page_tables import report_section
from robench.reporting.transfers import transfer_matrix
from robench.results import Store
from robench.validity.free_diagnoses import free_diagnoses

pytestmark = pytest.mark.usefixtures("unexamined")

EPS, N = 0.1, 40
WEIGHTS = {"first": (1, 0, 0), "both": (1, 2, 0), "sure": (1, 0, 1)}
TOGETHER = "both+first (logits)"
MASKED = "masked"
"""Decides as ``first`` does, and has no slope"""

SIDES = torch.tensor([1.0, -1.0]).repeat(N // 2)
AWAY = torch.stack([0.0075 + 0.005 * torch.arange(N)] * 2 + [torch.full((N,), 0.4)], dim=1)
AWAY[:2] = torch.tensor([-0.02, 0.2, 0.4])
"""By how much each pixel speaks for the sample's class; the first model has two samples wrong"""


class Line(nn.Module):
    """Two classes by a weighted sum of three pixels."""

    def __init__(self, weights: tuple[int, ...], masked: bool = False) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))
        self.masked = masked

    def forward(self, inputs: Tensor) -> Tensor:
        lead = 10 * ((inputs - 0.5).flatten(1) @ self.weights)
        if self.masked:
            lead = lead * 0 + lead.detach()
        return torch.stack((-lead, lead), dim=1)


def model(name: str, threat: str = f"Linf-{EPS}", **options: Any) -> RobenchModel:
    weights = WEIGHTS.get(name, WEIGHTS["first"])
    return wrap_module(
        Line(weights, name == MASKED),
        num_classes=2,
        name=name,
        threat_model=threat,
        dataset="lines",
        **{"input": {"channels": 1}, **options},
    )


def samples(n: int = N) -> ArrayDataset:
    inputs = 0.5 + SIDES[:, None] * AWAY
    labels = (SIDES > 0).long()
    return ArrayDataset(inputs[:n].reshape(-1, 1, 1, 3), labels[:n], name="lines", num_classes=2)


def transfer(*names: str, **options: Any) -> Transfer:
    given = {"attack": "fgsm", "device": "cpu", "progress": False} | options
    return robench.transfer([model(name) for name in names], samples(), **given)


def by_hand(source: Any, target: Any) -> float:
    """Percent that the target has right once one step of length ε was made against the source."""
    source, target = (torch.tensor(weights, dtype=torch.float32) for weights in (source, target))
    moved = AWAY - EPS * source.sign() * (AWAY @ source > 0)[:, None]
    return 100 * float(((AWAY @ target > 0) & (moved @ target > 0)).float().mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def found(folder: Path) -> Transfer:
    return transfer(*WEIGHTS, results=folder, ensembles=[("first", "both")])


def test_every_entry_is_the_one_by_hand(found: Transfer) -> None:
    matrix = found.matrix()
    assert list(matrix.columns) == sorted(WEIGHTS)
    assert sorted(matrix.index) == sorted([*WEIGHTS, TOGETHER])
    sources = {**WEIGHTS, TOGETHER: (1, 1, 0)}
    for source, weights in sources.items():
        for target in WEIGHTS:
            expected = by_hand(weights, WEIGHTS[target])
            assert matrix.loc[source, target] == pytest.approx(expected), (source, target)
    assert len({round(value, 2) for value in matrix.to_numpy().ravel()}) == 4
    assert repr(found).splitlines()[0] == "fgsm"


def test_what_did_not_break_the_source_counts_and_what_it_has_wrong_does_not(
    found: Transfer,
) -> None:
    table = found.to_frame().set_index(["source", "target"])
    # Nothing that was made for ``sure`` breaks it, and all of it is judged.
    row = table.loc[("sure", "first")]
    assert (row["source_broken"], row["without_input"]) == (0, 0)
    assert row["broken"] > 0
    assert np.isnan(row["transferred"])
    row = table.loc[("first", "both")]
    assert row["without_input"] == 2
    could = ((AWAY[:, 0] > 0) & (AWAY[:, 0] < EPS)).numpy()
    broke = ((AWAY @ torch.tensor([1.0, 2, 0])) < EPS).numpy()
    assert row["source_broken"] == could.sum()
    assert row["transferred"] == pytest.approx(100 * broke[could].mean(), abs=0.01)
    assert table.loc[(TOGETHER, "first"), "relation"] == "member"
    assert table.loc[(TOGETHER, "sure"), "relation"] == "other"


def test_the_diagonal_is_the_record_s_own_number(found: Transfer, folder: Path) -> None:
    store = Store(folder)
    matrix = found.matrix()
    for result in found.results:
        if result.model.name not in WEIGHTS:
            continue
        own = result.attacks["fgsm"]
        on = matrix.loc[result.model.name, result.model.name]
        assert on == round(result.attack_acc("fgsm").estimate, 2)
        kept = store.adversarial_rows(own.record.key)[:]
        judged = robench.judge(
            model(result.model.name),
            {"adv_inputs": kept, "ids": own.table["sample_id"].tolist()},
            samples(),
            device="cpu",
        )
        for column in ("outcome", "adv_prediction", "adv_margin"):
            assert judged.table[column].equals(own.table[column]), column


def test_a_matrix_ends_with_the_lowest_of_others(found: Transfer) -> None:
    table = transfer_matrix(found.results).set_index("source")
    assert list(table.index[-1:]) == ["lowest of others"]
    others = [by_hand(WEIGHTS[name], WEIGHTS["first"]) for name in WEIGHTS if name != "first"]
    assert table.loc["lowest of others", "first_acc"] == pytest.approx(min(others))
    # It is a member of the ensemble, ``sure`` is none.
    assert table.loc["lowest of others", "sure_acc"] == pytest.approx(
        min(by_hand(weights, WEIGHTS["sure"]) for weights in [(1, 0, 0), (1, 2, 0), (1, 1, 0)])
    )


def test_the_page_has_what_others_inputs_left(found: Transfer) -> None:
    row = next(r for r in explorer_contents(found.results)["rows"] if r["name"] == "first")
    told = {
        source: (survived, broken, members)
        for source, _, survived, broken, members in row["transfers"]
    }
    assert set(told) == {"both", "sure", TOGETHER}
    assert told["both"] == (21, 17, 0)
    assert told[TOGETHER][2] == 2
    section = report_section("transfer_matrix", transfer_matrix(found.results))
    (table,) = section.tables
    assert table.names == ["attack", "source", "both_acc", "first_acc", "sure_acc"]
    assert [cell.shown for cell in table.rows[0]][:3] == ["fgsm", "both", "57.50"]


def test_neither_order_nor_batches_matter() -> None:
    one = transfer("first", "both", ensembles=[("first", "both")])
    two = transfer("both", "first", ensembles=[("both", "first")], batch_size=3, workers=1)
    assert one.to_frame().equals(two.to_frame())


def test_a_mean_of_probabilities_is_another_source() -> None:
    found = transfer("first", "both", ensembles=[("first", "both")], mean="probabilities")
    on = found.matrix().loc["both+first (probabilities)", "first"]
    assert on == pytest.approx(by_hand((1, 1, 0), WEIGHTS["first"]))


def test_what_is_there_is_read_and_inputs_are_kept_once(found: Transfer, folder: Path) -> None:
    store, told = Store(folder), []

    class Told(Silent):
        def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
            told.append(cached)

    before = store.keys()
    again = transfer(*WEIGHTS, results=folder, ensembles=[("both", "first")], listener=Told())
    assert again.to_frame().equals(found.to_frame())
    assert store.keys() == before
    assert told == [True] * (4 + 3 * 2 + 3)
    kept = [s for s in store.records() if store.has_adversarial(s.record.key)]
    assert len(kept) == 4
    assert all(stored.record.made_for is None for stored in kept)


def test_no_number_of_a_model_but_best_known_is_of_transfers(tmp_path: Path) -> None:
    transfer("first", MASKED, results=tmp_path)
    records = list(Store(tmp_path).records())
    board = build_leaderboard(records).set_index("model")
    clean = 95.0  # all but the two that it has wrong
    assert board.loc[MASKED, "robust_acc"] == clean
    left = by_hand(WEIGHTS["first"], WEIGHTS["first"])
    assert board.loc[MASKED, "best_known_acc"] == pytest.approx(left)
    assert [name for name in board.columns if name.endswith("fgsm_acc")] == ["fgsm_acc"]
    (broken,) = contradictions(records)
    assert (broken.rule, broken.model) == ("transfer_beats_direct", f"lines/Linf-{EPS}/{MASKED}")
    of = {result.model.name: result for result in collect(records)}
    for name, outcome in ((MASKED, "masked"), ("first", "sound")):
        own, others = of[name].attacks.values(), of[name].transfers
        told = {d.test: d for d in free_diagnoses(list(own), list(others))}
        assert told["transfer_beats_direct"].outcome == outcome
    assert told["transfer_beats_direct"].value == clean


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["first"], {}, "first alone has no other model"),
        (["first", "first"], {}, "first alone has no other model"),
        (["first", "both"], {"attack": "fgms"}, "unknown attack 'fgms'"),
        (["first", "both"], {"attack": "least"}, "unknown attack"),
        (["first", "both"], {"ensembles": [("first", "bth")]}, "did you mean 'both'"),
        (["first", "both"], {"ensembles": [("first",)]}, "an ensemble of one model, first"),
        (["first", "both"], {"mean": "votes", "ensembles": [("first", "both")]}, "'votes'"),
        (["first", "both"], {"norm": "Linf", "eps": "0.1,0.2"}, "and these are several"),
        (["first", "both"], {"goal": "targeted", "targets": "next"}, "Leave out the goal"),
    ],
)
def test_what_is_no_transfer_is_refused(
    names: list[str], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RobenchError) as refused:
        transfer(*names, results=tmp_path, **options)
    assert words.casefold() in str(refused.value).casefold()
    assert list(tmp_path.iterdir()) == []


def test_models_of_other_balls_shapes_or_classes_are_refused() -> None:
    def of(other: RobenchModel) -> Any:
        return robench.transfer([model("first"), other], samples(), "fgsm", device="cpu")

    with pytest.raises(UsageError, match=r"Linf-0\.1, Linf-0\.2"):
        of(model("both", "Linf-0.2"))
    with pytest.raises(RobenchError, match=r"channels|take"):
        of(model("both", input={"channels": 3, "mean": [0.1, 0.2, 0.3]}))
    wide = wrap_module(
        nn.Sequential(nn.Flatten(), nn.Linear(3, 5)),
        num_classes=5,
        name="wide",
        threat_model=f"Linf-{EPS}",
    )
    with pytest.raises(UsageError, match="5 classes"):
        of(wide)
    with pytest.raises(UnknownNameError, match="pgd-att"):
        robench.transfer(["pgd-at", "pgd-att"], "digits", n=2)
    with pytest.raises(UsageError, match="one model alone"):
        robench.transfer("pgd-at")  # type: ignore[arg-type]


def test_the_committed_matrix_has_the_committed_numbers_on_its_diagonal() -> None:
    root = Path(__file__).parents[2]
    matrix = pd.read_csv(root / "benchmarks/results/transfer/digits.csv").set_index("source")
    pairs = pd.read_csv(root / "benchmarks/results/transfer/digits_pairs.csv")
    board = read_leaderboard(root / "results/leaderboard.csv").set_index("model")
    assert set(matrix.columns) == {"group", "attack", *(f"{name}_acc" for name in board.index)}
    for name, own in board["pgd_20_acc"].items():
        assert matrix.loc[name, f"{name}_acc"] == own
    for row in pairs.itertuples():
        assert matrix.loc[row.source, f"{row.target}_acc"] == row.robust_acc
    assert len(pairs) == len(board) ** 2
