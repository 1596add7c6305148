"""Options of every command that evaluates, each defined once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ArchArgOption",
    "ArchOption",
    "BatchSizeOption",
    "DataFolderOption",
    "DataOption",
    "DatasetOption",
    "DownloadFlag",
    "EpsOption",
    "InputOption",
    "NOption",
    "NormOption",
    "Precision",
    "PrecisionOption",
    "SeedOption",
    "SplitOption",
    "SuiteOption",
    "TrustCodeFlag",
    "TrustPickleFlag",
]


class Precision(StrEnum):
    """Of the search; verdicts are in float32 whatever is chosen."""

    AUTO = "auto"
    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Data set by name, a folder of images, or a file of arrays; default: the one that "
        "the models' cards name, or digits.",
    ),
]
SplitOption = Annotated[
    str, typer.Option("--split", metavar="SPLIT", help="Which part of the data set.")
]
DataFolderOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Where downloaded data sets are kept."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data-option", metavar="NAME=VALUE", help="Option of a folder or file, as size=32."
    ),
]
DownloadFlag = Annotated[
    bool, typer.Option("--download", help="Fetch a missing data set.", show_default=False)
]
SuiteOption = Annotated[
    str,
    typer.Option(
        "--suite", metavar="SUITE", help="Name or TOML file; `robench attacks` lists them."
    ),
]
NOption = Annotated[
    int | None,
    typer.Option(
        "--n", metavar="N", help="Samples, always the same ones; default: 500, or all of fewer."
    ),
]
NormOption = Annotated[
    str | None,
    typer.Option("--norm", metavar="NORM", help="Linf, L2 or L1; default: each model's own."),
]
EpsOption = Annotated[
    str | None,
    typer.Option(
        "--eps", metavar="EPS", help="Radius in [0, 1] units, as 8/255; default: each model's own."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="SEED", help="Keys every draw.", min=0)]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="Of the search; verdicts are always in float32."),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", min=1, help="Default: measured. Changes no result."),
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="Architecture of weights without a card: robench's, torchvision:NAME, timm:NAME, "
        "package.module:callable, or program.",
    ),
]
ArchArgOption = Annotated[
    list[str] | None,
    typer.Option("--arch-arg", metavar="NAME=VALUE", help="Argument of the architecture."),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=VALUE",
        help="What weights without a card expect, as mean=0.5 std=0.25, or high=255.",
    ),
]
TrustPickleFlag = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="Execute the code in the weights file.", show_default=False
    ),
]
TrustCodeFlag = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Call what a card outside the zoo folders names.",
        show_default=False,
    ),
]
