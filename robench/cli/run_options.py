"""Options of every command that evaluates, each defined once, and in groups."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from robench.cli.settings import parse_settings
from robench.errors import UsageError

__all__ = [
    "ArchArgOption",
    "AttackOptions",
    "BatchSizeOption",
    "DataFolderOption",
    "DataOption",
    "InputOption",
    "Precision",
    "PrecisionOption",
    "SampleOptions",
    "SplitOption",
    "TrustOptions",
    "TrustPickleFlag",
    "WeightsOptions",
    "WorkersOption",
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
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Searches side by side; default: on a CPU one for each thread. Changes no result.",
    ),
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


@dataclass(frozen=True)
class SampleOptions:
    """Where the samples are."""

    dataset: DatasetOption = None
    split: SplitOption = "test"
    data: DataFolderOption = None
    data_option: DataOption = None
    download: DownloadFlag = False

    def request(self) -> dict[str, Any]:
        """Fields of :class:`robench.cli.requests.Request`."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "data": self.data,
            "data_options": parse_settings(self.data_option or [], "--data-option"),
            "download": self.download,
        }


@dataclass(frozen=True)
class AttackOptions:
    """What attacks, on how many samples, in which ball, with which draws."""

    suite: SuiteOption = "standard"
    n: NOption = None
    norm: NormOption = None
    eps: EpsOption = None
    seed: SeedOption = 0

    def request(self) -> dict[str, Any]:
        """Fields of :class:`robench.cli.requests.Request`."""
        return {
            "suite": self.suite,
            "n": self.n,
            "norm": self.norm,
            "eps": self.eps,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class WeightsOptions:
    """What weights files without a card do not say themselves."""

    arch: ArchOption = None
    arch_arg: ArchArgOption = None
    input_option: InputOption = None

    def request(self) -> dict[str, Any]:
        """Fields of :class:`robench.cli.requests.Request`.

        Raises:
            UsageError: arguments or an input without an architecture.
        """
        arguments = parse_settings(self.arch_arg or [], "--arch-arg")
        expected = parse_settings(self.input_option or [], "--input")
        if self.arch is None:
            if arguments or expected:
                raise UsageError(
                    "--arch-arg and --input are for weights without a card",
                    hint="Name their architecture with --arch",
                )
            return {}
        # Pydantic takes time to import, which --help does without.
        from robench.records import ArchitectureSpec

        architecture = ArchitectureSpec(name=self.arch, arguments=arguments)
        return {"architecture": architecture, "input": expected}


@dataclass(frozen=True)
class TrustOptions:
    """What may be executed."""

    trust_pickle: TrustPickleFlag = False
    trust_code: TrustCodeFlag = False

    def request(self) -> dict[str, Any]:
        """Fields of :class:`robench.cli.requests.Request`."""
        return {"trust_pickle": self.trust_pickle, "trust_code": self.trust_code}
