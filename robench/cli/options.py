"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CsvFile",
    "DatasetFilter",
    "DeviceOption",
    "EpsFilter",
    "JsonFlag",
    "NFilter",
    "NormFilter",
    "PlotsFlag",
    "ResultsFolder",
    "SeedFilter",
]

ResultsFolder = Annotated[
    Path, typer.Option("--results", metavar="FOLDER", help="Folder with the stored records.")
]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout instead of text.", show_default=False)
]
CsvFile = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table to this file.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
]
PlotsFlag = Annotated[
    bool,
    typer.Option("--plots/--no-plots", help="Draw the figures and the page, or the CSV alone."),
]

DatasetFilter = Annotated[
    str | None, typer.Option("--dataset", metavar="NAME", help="Only results on this data set.")
]
NormFilter = Annotated[
    str | None, typer.Option("--norm", metavar="NORM", help="Only this norm: Linf, L2 or L1.")
]
EpsFilter = Annotated[
    str | None, typer.Option("--eps", metavar="EPS", help="Only this eps, such as 8/255.")
]
NFilter = Annotated[
    int | None, typer.Option("--n", metavar="N", help="Only results on so many samples.")
]
SeedFilter = Annotated[
    int | None, typer.Option("--seed", metavar="SEED", help="Only results of this seed.")
]
