"""What a user asks to have evaluated, however they ask: one plain, frozen dataclass.

The command line, the gate and the Python API all build a :class:`Request`;
:func:`robench.preparation.prepare` checks it and loads what it names. Importing this module loads
neither torch nor pydantic, and a request that names its models and data can be pickled.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.errors import UsageError
from robench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from robench.datasets import Dataset
    from robench.models.zoo import LocatedCard
    from robench.records import ForwardSpec, InputSpec, Suite

DEFAULT_DATASET = "digits"
"""Where neither the user nor a model's card names one."""

DEFAULT_N = 500
"""Samples taken where the user does not say; of a smaller data set, all."""

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
"""Of the search; verdicts are in float32 whatever is chosen."""

EXECUTORS = ("local", "ray")
"""Where jobs run: in this process and its forks, or on a Ray cluster."""

GOALS = ("untargeted", "targeted", "corrupted")
"""What counts as broken: any misclassification, or the class that the sample is to be taken for; or
there is no adversary, and inputs are as corruptions leave them."""


def whole_number(value: Any, name: str) -> int:
    """An integer of Python's or NumPy's as Python's.

    Raises:
        UsageError: it is none; True and 2.0 are none either.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    return operator.index(value)


def _wrong(name: str, value: Any, wanted: str) -> UsageError:
    # What else is given may be a tensor, whose values help nobody.
    plain = isinstance(value, (str, int, float, os.PathLike, type(None)))
    shown = f"{value!r:.50}" if plain else f"of type {type(value).__name__}"
    return UsageError(f"{name} is {shown}, it must be {wanted}")


_EXAMPLES = {"input": "{'channels': 1}", "forward": "{'output': 'logits'}"}


def _typed(item: Field[Any], value: Any) -> Any:
    """``value`` as the field's annotation says, NumPy's numbers as Python's.

    Models, data, radii and devices have readers of their own.

    Raises:
        UsageError: it is of another type.
    """
    kinds = set(str(item.type).split(" | "))
    if value is None and "None" in kinds:
        return None
    kinds.discard("None")
    if kinds == {"int"} or (kinds == {"str", "int"} and not isinstance(value, str)):
        return whole_number(value, item.name)
    if kinds == {"float"}:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise _wrong(item.name, value, "a number")
        return float(value)
    if kinds == {"bool"}:
        if type(value).__name__ not in ("bool", "bool_"):  # NumPy's too
            raise _wrong(item.name, value, "True or False")
        return bool(value)
    if kinds == {"str"} and not isinstance(value, str):
        raise _wrong(item.name, value, "a text")
    if kinds == {"str", "Path"} and not isinstance(value, (str, os.PathLike)):
        raise _wrong(item.name, value, "a path")
    modelled = hasattr(value, "model_fields_set")  # by pydantic, which is not loaded here
    if "Suite" in kinds and not (modelled or isinstance(value, (str, os.PathLike, Sequence))):
        raise _wrong(item.name, value, "a suite's name, or several")
    if any(kind.startswith("Mapping") for kind in kinds) and not (
        modelled or isinstance(value, Mapping)
    ):
        example = _EXAMPLES.get(item.name, "{'name': value}")
        raise _wrong(item.name, value, f"a dictionary, as {example}")
    return value


@dataclass(frozen=True)
class Part:
    """The ``index``-th of ``count`` parts of every job's samples, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """``"3/16"`` → the third of sixteen.

        Raises:
            UsageError: it is none of so many.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        part = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= part.index <= part.count:
            raise UsageError(
                f"shard {text!r:.50} is no part of a whole",
                hint="Write K/N with K from 1 to N, as --shard 3/16",
            )
        return part

    def __str__(self) -> str:
        return f"part {self.index} of {self.count}"


@dataclass(frozen=True)
class Request:
    """One evaluation: which models, on which samples, against which attacks, run how.

    Attributes:
        models: names, cards, weights files, addresses (``hf:…``), or modules; none: all of the
            zoo for the data set.
        dataset: a name, folder or file; a :class:`~robench.datasets.Dataset`; a pair (inputs
            (N, C, H, W), labels (N,)); or what else :func:`robench.datasets.from_torch` takes,
            such as a DataLoader. None: the one that the models' cards name.
        split: which part of a data set that is named.
        data_root: where downloaded data sets are kept.
        dataset_options: of a folder or file, such as ``{"size": 32}``.
        download: fetch a missing data set.
        suite: a name, a TOML file, or a suite; or several, whose entries are one suite then.
        settings: parameters of the suite's attacks, ``{"pgd-20.steps": 40}``; an attack that is
            changed so has a name that says it.
        n: samples, always the same ones; None: ``at_most``.
        at_most: samples where ``n`` is None, or all of a smaller set; None: all.
        norm, eps: in place of the models' own threat model; weights files and modules need them.
            Several radii, ``"0,1/255,2/255"`` or a sequence, are evaluated one after the other;
            0 stands for the clean samples, which every record has.
        goal: one of :data:`GOALS`; ``targeted``: an attack counts where the prediction is a target;
            ``corrupted`` is what a suite of corruptions is for, and follows from it.
        targets: of that goal, each sample's target: ``next``, ``least-likely``, ``random``, ``all``,
            or one class for all, by its name or number.
        seed: keys every draw.
        architecture, architecture_arguments: of weights files that have no card.
        weights: where in such a file the network is: ``{"key": "model_ema"}``, ``strip_prefix``.
        input: what such weights, or a bare module, expect: fields of
            :class:`robench.records.InputSpec`.
        forward: how such a network is called and where its logits are: fields of
            :class:`robench.records.ForwardSpec`.
        num_classes: of a bare module, and of data that is given and names no classes; None: the
            data set's, or the largest label + 1.
        name: of a bare module in the records.
        trust_pickle: execute the code in weights files.
        trust_code: import and call the code that a card outside the zoo folders, a suite's file or
            ``dataset`` names as ``package.module:attribute``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a search on each of several:
            ``cuda:0,cuda:1``, ``cuda:all``, or ``cpu:2``.
        precision: of the search, one of :data:`PRECISIONS`.
        draws: of one verdict on a model with random outputs; None: as its card says, else 32.
        batch_size: inputs at a time; None: chosen by measurement.
        workers: searches side by side; None: on a CPU one for each thread of torch's.
        results: folder of records, read and written; None: nothing is kept.
        save_adversarial: keep every adversarial input with the records.
        shard: only a part of every job's samples, ``"3/16"`` for the third of sixteen; it goes to the
            results folder, where :func:`robench.evaluation.merging.merge` finds it.
        executor: one of :data:`EXECUTORS`; ``ray``: parts of jobs run on a cluster, and are joined here.
        address: of the cluster: ``local`` for one of this machine alone, ``auto``, or HOST:PORT. There
            ``workers`` are the parts at a time; None: as many as there is room for.
        shards: parts of each job on a cluster; None: as many as keep it busy.
        cpus_per_task, gpus_per_task: what each part takes of the cluster; None: 1 GPU if it has any.
        trace: keep what searches see at each step with the records, of whole jobs alone.

    Raises:
        UsageError: a value that makes no sense for any model and data.
        UnknownNameError: there is no such precision or goal.
    """

    models: Sequence[str | Path | LocatedCard | nn.Module] = ()
    dataset: str | Path | Dataset | tuple[Tensor, Tensor] | Iterable[Any] | None = None
    split: str = "test"
    data_root: str | Path | None = None
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    download: bool = False
    suite: str | Path | Suite | Sequence[str | Path | Suite] = "standard"
    settings: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    at_most: int | None = DEFAULT_N
    norm: str | None = None
    eps: str | float | Sequence[str | float] | None = None
    goal: str = "untargeted"
    targets: str | int | None = None
    seed: int = 0
    architecture: str | None = None
    architecture_arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    input: InputSpec | Mapping[str, Any] = field(default_factory=dict)
    forward: ForwardSpec | Mapping[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    name: str = "model"
    trust_pickle: bool = False
    trust_code: bool = False
    device: str | torch.device = "auto"
    precision: str = "auto"
    draws: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    results: str | Path | None = None
    save_adversarial: bool = False
    shard: str | None = None
    executor: str = "local"
    address: str = "local"
    shards: int | None = None
    cpus_per_task: float = 1.0
    gpus_per_task: float | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.models, str):
            raise UsageError("models is one text, not several", hint=f"Write [{self.models!r}]")
        if not isinstance(self.models, Sequence):
            raise _wrong("models", self.models, "a list of models")
        for item in fields(self):
            # What is left out has a default; what is given empty was meant to be something.
            value = _typed(item, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
            if isinstance(value, str) and not value and item.name != "eps":
                raise UsageError(f"{item.name} is empty", hint="Leave it out, or say what it is")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, list(PRECISIONS))
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, list(EXECUTORS))
        if self.cpus_per_task <= 0 or (self.gpus_per_task or 0) < 0:
            raise UsageError(
                f"a task takes {self.cpus_per_task:g} CPUs and {self.gpus_per_task or 0:g} GPUs",
                hint="Choose more than 0 with --cpus-per-task, and 0 or more with --gpus-per-task",
            )
        if self.goal not in GOALS:
            raise unknown_name("goal", self.goal, list(GOALS))
        if (self.targets is not None) != (self.goal == "targeted"):
            raise UsageError(
                f"the goal is {self.goal}, and "
                + ("no targets are named" if self.targets is None else "targets are named"),
                hint="Write --goal targeted --targets RULE, one of next, least-likely, random, all or "
                "a class; from Python goal='targeted', targets='next'",
            )
        if self.trace and self.results is None:
            raise UsageError(
                "a trace is kept with the records, and no results folder is named",
                hint="Choose one with results='FOLDER'",
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}, it must be at least 0 and below 2**63")
        for name in ("batch_size", "workers", "num_classes", "shards"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}, it must be 1 or more")
        if self.draws is not None and self.draws < 2:
            raise UsageError(
                f"draws is {self.draws}, it must be 2 or more",
                hint="A sample is wrong if more than half of its draws are: 32 tell much, 100 more",
            )
        if self.part is not None and self.results is None:
            raise UsageError(
                "a shard is kept in a results folder, and none is named",
                hint="Choose one with --results",
            )

    @property
    def part(self) -> Part | None:
        """The part of the samples that is wanted; None: all of them."""
        return None if self.shard is None else Part.parse(self.shard)

    @property
    def folder(self) -> Path:
        """The results folder.

        Raises:
            UsageError: the request names none.
        """
        if self.results is None:
            raise UsageError("no results folder is named", hint="Choose one with --results")
        return Path(self.results)
