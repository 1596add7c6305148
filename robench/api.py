"""robench from Python: load a model, evaluate it.

Everything that evaluates builds a :class:`~robench.request.Request`. :func:`prepare` checks it
and loads what it names, without writing anything or making an attack; :meth:`Prepared.run` makes
the records; :func:`evaluate` is both.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robench.datasets import Dataset
from robench.errors import UsageError
from robench.evaluation.runner import Listener
from robench.inspection import judging
from robench.models import load_model
from robench.preparation import Prepared, prepare
from robench.records import Suite, Validation
from robench.request import DEFAULT_DATASET, Request
from robench.results import StoredRecord
from robench.threat_models import ThreatModel
from robench.validity.validation import validate as validate_prepared

__all__ = ["Prepared", "Request", "evaluate", "judge", "load_model", "prepare", "validate"]


def evaluate(
    model: Request | str | Path | nn.Module,
    dataset: str | Path | Dataset | Iterable[Any] | tuple[Tensor, Tensor] | None = None,
    suite: str | Path | Suite | None = None,
    *,
    threat_model: str | ThreatModel | None = None,
    n: int | None = None,
    listener: Listener | None = None,
    **fields: Any,
) -> list[StoredRecord]:
    """Evaluate one model, or whatever a request asks for.

    A data set that is given by name is prepared as the model's card says, if it says so.

    Args:
        model: a card's id, name or path, or any ``nn.Module`` that maps float32 (N, C, H, W) in
            [0, 1] to logits (N, K); or a whole :class:`~robench.request.Request`, which leaves
            only ``listener`` to be given.
        dataset: as in :class:`~robench.request.Request`; None: ``digits``.
        suite: a suite's name or file; None: ``standard``.
        threat_model: such as ``"Linf-8/255"``; None: the card's.
        n: number of samples, a fixed subset; None: all.
        listener: is told about progress.
        fields: all others of :class:`~robench.request.Request`, such as ``seed`` or ``results``;
            for a bare module ``input``, ``forward``, ``num_classes`` and ``name``.

    Returns:
        One stored record for each attack: ``.record`` with the summary, ``.table`` with a row for
        each sample.

    Raises:
        RobenchError: see :mod:`robench.errors`.
    """
    if isinstance(model, Request):
        if fields or any(given is not None for given in (dataset, suite, threat_model, n)):
            raise UsageError(
                "a request and further fields of one",
                hint="Put them into the request: dataclasses.replace(request, …)",
            )
        return prepare(model).run(listener)
    if suite is not None:
        fields["suite"] = suite
    return prepare(_request(model, dataset, threat_model, n, fields)).run(listener)


def judge(
    model: str | Path | nn.Module,
    adv_inputs: Any,
    dataset: str | Path | Dataset | Iterable[Any] | tuple[Tensor, Tensor] | None = None,
    *,
    threat_model: str | ThreatModel | None = None,
    n: int | None = None,
    **fields: Any,
) -> StoredRecord:
    """Judge adversarial inputs that were made elsewhere, and file them as a record.

    Args:
        model, dataset, threat_model, n, fields: as for :func:`evaluate`.
        adv_inputs: a file (npz, npy, safetensors or torch's), a tensor or array, a pair (inputs,
            labels), or named arrays, as ``{"adv_inputs": …, "ids": …}``: float in [0, 1], or uint8;
            (N, C, H, W) or (N, H, W, C). They are in the data set's order unless ``ids`` says whose
            they are; ``labels`` are held against the data set's.

    Returns:
        The record. ``.record.judged`` says how many are finds, why the others are not, and how many
        finds survive rounding to 8 bits.

    Raises:
        RobenchError: as for :func:`evaluate`, and inputs of another shape, range, order or number.
    """
    return judging.judge(_request(model, dataset, threat_model, n, fields), adv_inputs)


def validate(
    model: Request | str | Path | nn.Module,
    dataset: str | Path | Dataset | Iterable[Any] | tuple[Tensor, Tensor] | None = None,
    suite: str | Path | Suite = "aa-standard",
    *,
    threat_model: str | ThreatModel | None = None,
    n: int | None = None,
    listener: Listener | None = None,
    **fields: Any,
) -> list[Validation]:
    """Say what a suite's number for a model is worth: find masked gradients, and break them.

    Args:
        model, dataset, threat_model, n, listener, fields: as for :func:`evaluate`; of a whole request
            the suite is its own.
        suite: the one whose number is judged; its records are made where they lack.

    Returns:
        One for each radius: ``.verdict`` (``stands``, ``lowered`` or ``unreliable``), its ``.reasons``,
        ``.diagnoses`` and ``.trials``.

    Raises:
        RobenchError: as for :func:`evaluate`; a request with targets.
    """
    if isinstance(model, Request):
        return validate_prepared(prepare(model), listener)
    fields["suite"] = suite
    return validate_prepared(prepare(_request(model, dataset, threat_model, n, fields)), listener)


def _request(
    model: Any,
    dataset: Any,
    threat_model: str | ThreatModel | None,
    n: int | None,
    fields: dict[str, Any],
) -> Request:
    if threat_model is not None:
        threat = ThreatModel.parse(threat_model)
        fields |= {"norm": threat.norm, "eps": threat.written}
        if threat.targets is not None:
            fields |= {"goal": "targeted", "targets": threat.targets}
    data = DEFAULT_DATASET if dataset is None else dataset
    return Request(models=(model,), dataset=data, n=n, at_most=None, **fields)
