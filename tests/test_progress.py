"""Who watches an evaluation sees how it gets on; nobody else is written to."""

from __future__ import annotations

import io
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from record_factory import make_record, make_samples
from rich.console import Console
from torch import nn

import robench
from robench.progress import ProgressBars
from robench.results import StoredRecord

pytestmark = pytest.mark.usefixtures("unexamined")


def stored() -> StoredRecord:
    samples = make_samples("SSB")
    return StoredRecord.of(make_record(samples), samples)


class Cell:
    """A notebook's output, as it was drawn each time."""

    def __init__(self, shown: Any) -> None:
        self.drawn = [self.text(shown)]

    def update(self, shown: Any) -> None:
        self.drawn.append(self.text(shown))

    @staticmethod
    def text(shown: Any) -> str:
        html: str = shown._repr_mimebundle_([], [])["text/html"]
        return html


def test_a_notebook_gets_bars_without_further_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[Cell] = []
    display = ModuleType("IPython.display")

    def show(shown: Any, *, display_id: bool) -> Cell:
        assert display_id
        cells.append(Cell(shown))
        return cells[0]

    display.display = show  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    written = io.StringIO()
    # One that says nothing of widgets that are not installed.
    with (
        warnings.catch_warnings(action="error"),
        ProgressBars(2, Console(file=written, force_jupyter=True)) as bars,
    ):
        bars.job_started("<b>mine</b>", "pgd-20", 40, False)
        bars.advanced(20)
        bars.job_finished(stored())
        bars.job_started("mine", "fgsm", 1, True)
        bars.job_finished(stored())
    (cell,) = cells
    assert "0%" in cell.drawn[0]
    at_work = next(text for text in cell.drawn if "pgd-20" in text)
    assert "&lt;b&gt;mine" in at_work
    assert "<b>mine" not in at_work
    assert "100%" in cell.drawn[-1]
    assert "pgd-20" not in cell.drawn[-1]
    assert written.getvalue() == ""


@pytest.mark.parametrize("watched", [True, False])
def test_a_terminal_gets_bars_and_a_log_nothing(watched: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=watched, force_jupyter=False, width=100)
    with ProgressBars(1, console) as bars:
        bars.job_started("mine", "pgd-20", 40, False)
        bars.advanced(20)
        bars._bars.refresh()
        bars.job_finished(stored())
    assert ("mine · pgd-20" in written.getvalue()) == watched
    assert ("50%" in written.getvalue()) == watched
    if not watched:
        assert written.getvalue() == ""


class Heard(ProgressBars):
    """Bars, and what they were told."""

    made: list[Heard]

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self.jobs, self.told = jobs, list[str]()
        self.made.append(self)

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        self.told.append(attack)


def test_whatever_attacks_shows_bars_unless_it_is_to_be_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Heard.made = []
    monkeypatch.setattr("robench.progress.ProgressBars", Heard)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    inputs, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    data = (inputs, labels)
    how = {"input": {"channels": 1}, "device": "cpu", "precision": "fp32"}
    about = {**how, "threat_model": "Linf-0.1"}
    robench.evaluate(module, data, "quick", progress=False, **about)
    robench.attack(module, *data, "fgsm", eps=0.1, progress=False, **how)
    assert Heard.made == []
    robench.evaluate(module, data, "quick", **about)
    robench.attack(module, *data, "fgsm", eps=0.1, **how)
    assert [(bars.jobs, bars.told) for bars in Heard.made] == [
        (2, ["fgsm", "pgd-20"]),
        (1, ["fgsm"]),
    ]
    listener = Heard(2)
    robench.evaluate(module, data, "quick", listener=listener, **about)
    assert listener.told == ["fgsm", "pgd-20"]
    assert len(Heard.made) == 3
    assert capsys.readouterr() == ("", "")
