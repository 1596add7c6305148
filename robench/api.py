"""robench from Python: load a model, evaluate it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.suites import load_suite
from robench.datasets import ArrayDataset, Dataset, from_torch, load_dataset
from robench.devices import resolve_device
from robench.errors import UsageError
from robench.evaluation.listener import Listener
from robench.evaluation.runner import evaluate_model
from robench.evaluation.settings import Settings
from robench.models import load_model, wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import InputSpec, Suite
from robench.results.store import Store, StoredRecord
from robench.threat_models import ThreatModel

__all__ = ["evaluate", "load_model"]


def evaluate(
    model: str | Path | nn.Module,
    dataset: str | Dataset | Iterable[Any] | tuple[Tensor, Tensor] = "digits",
    suite: str | Path | Suite = "standard",
    *,
    threat_model: str | ThreatModel | None = None,
    n: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    results: str | Path | None = None,
    save_adversarial: bool = False,
    num_classes: int | None = None,
    input: InputSpec | Mapping[str, Any] | None = None,
    name: str = "model",
    listener: Listener | None = None,
) -> list[StoredRecord]:
    """Evaluate one model.

    A data set that is given by name is prepared as the model's card says, if it says so.

    Args:
        model: a card's id, name or path, or any ``nn.Module`` that maps float32 (N, C, H, W) in
            [0, 1] to logits (N, K).
        dataset: a data set's name or folder, a :class:`~robench.datasets.Dataset`, a pair
            (inputs (N, C, H, W) in [0, 1], labels (N,)), or anything that
            :func:`robench.datasets.from_torch` takes, such as a DataLoader.
        suite: a suite's name or file.
        threat_model: such as ``"Linf-8/255"``; None: the card's.
        n: number of samples, a fixed subset; None: all.
        seed: of all draws.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: of the search: ``auto``, ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        batch_size: inputs at a time; None: chosen for the device.
        workers: searches side by side; None: on a CPU one for each thread of torch's.
        results: folder of records, read and written; None: nothing is kept.
        save_adversarial: keep adversarial inputs with the records.
        num_classes: for a module that is not robench's; None: the data set's.
        input: for such a module, the range or normalisation that it expects.
        name: for such a module, its name in the records.
        listener: is told about progress.

    Returns:
        One stored record for each attack: ``.record`` with the summary, ``.table`` with a row for
        each sample.

    Raises:
        RobenchError: see :mod:`robench.errors`.
    """
    place = resolve_device(device) if isinstance(device, str) else device
    data = _dataset(dataset, num_classes)
    if n is not None:
        data = data.subset(n)
    threat = ThreatModel.parse(threat_model) if isinstance(threat_model, str) else threat_model
    plan = suite if isinstance(suite, Suite) else load_suite(suite)
    if isinstance(model, RobenchModel):
        wrapped = model
    elif isinstance(model, nn.Module):
        if threat is None:
            raise UsageError(
                "a module has no threat model of its own", hint="Pass threat_model='Linf-8/255'"
            )
        wrapped = wrap_module(
            model,
            num_classes=num_classes or data.num_classes,
            input=input or {"channels": data.input_shape[0]},
            name=name,
            dataset=data.name,
            threat_model=threat,
        )
    else:
        wrapped = load_model(model, dataset=data.name)
        if wrapped.preprocessing is not None and isinstance(dataset, str | Path):
            data = load_dataset(dataset, n=n, preprocessing=wrapped.preprocessing)
    with ExitStack() as stack:
        folder = results or stack.enter_context(tempfile.TemporaryDirectory(prefix="robench-"))
        return evaluate_model(
            wrapped,
            data,
            plan,
            store=Store(folder),
            threat_model=threat,
            listener=listener,
            settings=Settings(
                seed=seed,
                device=place,
                precision=precision,
                batch_size=batch_size,
                workers=workers,
                save_adversarial=save_adversarial,
            ),
        )


def _dataset(
    dataset: str | Dataset | Iterable[Any] | Sequence[Tensor], num_classes: int | None
) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, str | Path):
        return load_dataset(str(dataset))
    if isinstance(dataset, tuple) and len(dataset) == 2:
        inputs, labels = dataset
        if isinstance(inputs, Tensor) and isinstance(labels, Tensor):
            return ArrayDataset(inputs, labels, num_classes=num_classes)
    return from_torch(dataset, num_classes=num_classes)
