"""robench from Python: load a model, evaluate it.

Everything that evaluates builds a :class:`~robench.request.Request`. :func:`prepare` checks it
and loads what it names, without writing anything or making an attack; :meth:`Prepared.run` makes
the records; :func:`evaluate` is both.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pandas import DataFrame
from torch import Tensor, nn

from robench.attacks.suites import find_attack
from robench.datasets import Dataset, from_torch, load_dataset
from robench.devices import device_of
from robench.errors import ModelError, UsageError
from robench.evaluation.runner import Listener
from robench.evaluations import Evaluation
from robench.inspection import judging
from robench.inspection.transfer import Transfer, attack_suite, prepare_transfer
from robench.models import RobenchModel, list_cards, load_model
from robench.models.given import check_models
from robench.preparation import Prepared, prepare
from robench.probes import undisturbed
from robench.progress import shown
from robench.records import AttackSpec, Outcome, Suite, Validation
from robench.reporting.compare import Comparison, compare_models
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import collect, find_pair
from robench.request import DEFAULT_DATASET, Request
from robench.results import Store, StoredRecord
from robench.results.bounds import known_bounds
from robench.results.validations import Validations
from robench.threat_models import ThreatModel, parse_norm
from robench.validity.validation import validate as validate_prepared

__all__ = [
    "Comparison",
    "Evaluation",
    "Prepared",
    "Request",
    "attack",
    "compare",
    "evaluate",
    "judge",
    "leaderboard",
    "list_models",
    "load_dataset",
    "load_model",
    "prepare",
    "transfer",
    "validate",
]


def evaluate(
    model: Request | str | Path | nn.Module,
    dataset: str | Path | Dataset | Iterable[Any] | tuple[Tensor, Tensor] | None = None,
    suite: str | Path | Suite | Sequence[str | Path | Suite] | None = None,
    *,
    threat_model: str | ThreatModel | None = None,
    n: int | None = None,
    listener: Listener | None = None,
    progress: bool = True,
    **fields: Any,
) -> Evaluation:
    """Evaluate one model, or whatever a request asks for.

    A data set that is given by name is prepared as the model's card says, if it says so.

    Args:
        model: a card's id, name or path, or any ``nn.Module`` that maps float32 (N, C, H, W) in
            [0, 1] to logits (N, K); or a whole :class:`~robench.request.Request`, which leaves
            only ``listener`` and ``progress`` to be given.
        dataset: as in :class:`~robench.request.Request`; None: ``digits``.
        suite: a suite's name or file, or several; None: ``standard``.
        threat_model: such as ``"Linf-8/255"``; None: the card's.
        n: number of samples, a fixed subset; None: all.
        listener: is told how the run gets on, in place of the bars.
        progress: show bars where somebody watches, on a terminal or in a notebook.
        fields: all others of :class:`~robench.request.Request`, such as ``seed`` or ``results``;
            for a bare module ``input``, ``forward``, ``num_classes`` and ``name``.

    Returns:
        The numbers (``.robust_acc``, ``.interval``, ``.by_attack``, ``.to_frame()``), the samples
        (``.samples``, ``.adversarial(attack)``), a figure (``.plot()``); and, as a sequence, one
        stored record for each attack.

    Raises:
        RobenchError: see :mod:`robench.errors`.
    """
    if isinstance(model, Request):
        if fields or any(given is not None for given in (dataset, suite, threat_model, n)):
            raise UsageError(
                "a request and further fields of one",
                hint="Put them into the request: dataclasses.replace(request, …)",
            )
        prepared = prepare(model)
    else:
        if suite is not None:
            fields["suite"] = suite
        prepared = prepare(_request(model, dataset, threat_model, n, fields))
    with shown(prepared.jobs, listener, progress) as told:
        return Evaluation(prepared, told)


def attack(
    model: str | Path | nn.Module,
    inputs: Any,
    labels: Any,
    attack: str | AttackSpec = "pgd-20",
    *,
    eps: str | float,
    norm: str = "Linf",
    progress: bool = True,
    **fields: Any,
) -> Tensor:
    """Adversarial inputs for a batch, in one call.

    Args:
        model: as for :func:`evaluate`.
        inputs: (N, C, H, W), or what else :func:`robench.datasets.from_torch` takes in a pair: a tensor
            or array of any float type in [0, 1], or uint8 from 0 to 255, channels first or last.
        labels: whole numbers (N,), the true classes, one-hot or names.
        attack: an entry of a suite that comes with robench, such as ``"pgd-20"``, ``"autoattack"``
            or ``"fast"``; an attack's own name, with its default parameters, such as ``"square"``;
            or an entry with parameters of yours.
        eps: the radius in [0, 1] pixel units, such as ``"8/255"``.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        progress: as for :func:`evaluate`.
        fields: as for :func:`evaluate`: ``input`` and ``forward`` of a bare module, ``seed``, …

    Returns:
        float32 (N, C, H, W) in [0, 1], each within ``eps`` of its input, on the inputs' device if they
        are a tensor. What was misclassified before stays as it was; what was not broken is the nearest
        try.

        Where the model fails on some, they may come back unchanged: a warning says how many.

    Raises:
        RobenchError: as for :func:`evaluate`.
        ModelError: the model fails on every input that is attacked.
    """
    spec = find_attack(attack, parse_norm(norm)) if isinstance(attack, str) else attack
    check_models([model])
    if not isinstance(model, nn.Module):
        model = load_model(model)
    # A batch need not have every class.
    if "num_classes" not in fields:
        fields["num_classes"] = _classes_of(model, inputs)
    found = evaluate(
        model,
        (inputs, labels),
        Suite(name="one", attacks=(spec,)),
        threat_model=f"{norm}-{eps}",
        progress=progress,
        **{**fields, "save_adversarial": True},
    )
    _say_what_failed(found[0])
    return found.adversarial(spec.name).to(inputs.device if isinstance(inputs, Tensor) else "cpu")


def leaderboard(results: str | Path | Iterable[StoredRecord] = "results") -> DataFrame:
    """The leaderboard of a results folder, or of evaluations' records, as its CSV has it.

    Args:
        results: a folder, an evaluation, or records: ``[*one, *other]``.

    Raises:
        StoreError: there is no such folder.
    """
    if not isinstance(results, str | Path):
        return build_leaderboard(list(results))
    store = Store.existing(results)
    validations = Validations(store).all()
    return build_leaderboard(
        list(store.records()), bounds=known_bounds(store), validations=validations
    )


def compare(
    baseline: str | Evaluation,
    other: str | Evaluation,
    results: str | Path = "results",
    *,
    level: float = 0.95,
) -> Comparison:
    """Compare a model with a baseline on the same samples, by paired tests.

    Args:
        baseline, other: evaluations of one model each, or names of models in the folder ``results``.
        level: of intervals, between 0 and 1.

    Returns:
        ``.table`` has a row for each quantity: the two values, the difference with its interval and
        p-value, and the verdict.

    Raises:
        UsageError: the two are not of the same samples, seed and threat model; a level out of range.
        UnknownNameError: the folder has no such model.
    """
    if not 0 < level < 1:
        raise UsageError(f"level {level} is not between 0 and 1", hint="Write level=0.95")
    if isinstance(baseline, str) and isinstance(other, str):
        first, second = find_pair(collect(Store.existing(results).records()), baseline, other)
    elif isinstance(baseline, Evaluation) and isinstance(other, Evaluation):
        first, second = baseline.result, other.result
    else:
        raise UsageError("an evaluation and a name", hint="Give two of a kind")
    return compare_models(first, [second], level=level)


def list_models(dataset: str | None = None) -> list[str]:
    """The ids of the zoo's models, of one data set or of all.

    Raises:
        CardError: a card cannot be read.
    """
    return [located.id for located in list_cards(dataset)]


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


def transfer(
    models: Sequence[str | Path | nn.Module],
    dataset: str | Path | Dataset | Iterable[Any] | tuple[Tensor, Tensor] | None = None,
    attack: str | AttackSpec | Suite = "pgd-20",
    *,
    ensembles: Sequence[Sequence[str]] = (),
    mean: str = "logits",
    threat_model: str | ThreatModel | None = None,
    n: int | None = None,
    listener: Listener | None = None,
    progress: bool = True,
    **fields: Any,
) -> Transfer:
    """Judge the adversarial inputs of each model on every other.

    Args:
        models: two or more, as for :func:`evaluate`, none: all of the zoo for the data set; of bare
            modules one alone, others through :func:`robench.models.wrap_module` with a name.
        dataset, threat_model, n, listener, progress, fields: as for :func:`evaluate`.
        attack: what makes the inputs: an entry as for :func:`attack`, or a suite, each of whose attacks
            has a matrix.
        ensembles: inputs are also made for these, each two or more of the models by name, together.
        mean: what an ensemble answers with, the mean of its models' ``"logits"`` or
            ``"probabilities"``.

    Returns:
        ``.to_frame()``, a row for each pair; ``.matrix()``, sources by targets in percent; ``.plot()``.

    Raises:
        UsageError: one model alone; models of several threat models, or that see the samples prepared
            in several ways.
        RobenchError: as for :func:`evaluate`.
    """
    if isinstance(models, str | Path | nn.Module):
        raise UsageError("one model alone has nobody to transfer to", hint="Give a list of models")
    if isinstance(attack, str):
        attack = attack_suite(attack)
    elif isinstance(attack, AttackSpec):
        attack = Suite(name="transfer", attacks=(attack,))
    request = _request(None, dataset, threat_model, n, fields | {"suite": attack})
    prepared = prepare_transfer(replace(request, models=tuple(models)), ensembles, mean)
    with shown(prepared.jobs, listener, progress) as told:
        return prepared.run(told)


def validate(
    model: Request | str | Path | nn.Module,
    dataset: str | Path | Dataset | Iterable[Any] | tuple[Tensor, Tensor] | None = None,
    suite: str | Path | Suite = "aa-standard",
    *,
    threat_model: str | ThreatModel | None = None,
    n: int | None = None,
    listener: Listener | None = None,
    progress: bool = True,
    **fields: Any,
) -> list[Validation]:
    """Say what a suite's number for a model is worth: find masked gradients, and break them.

    Args:
        model, dataset, threat_model, n, listener, progress, fields: as for :func:`evaluate`; of a whole
            request the suite is its own.
        suite: the one whose number is judged; its records are made where they lack.

    Returns:
        One for each radius: ``.verdict`` (``stands``, ``lowered`` or ``unreliable``), its ``.reasons``,
        ``.diagnoses`` and ``.trials``.

    Raises:
        RobenchError: as for :func:`evaluate`; a request with targets.
    """
    if isinstance(model, Request):
        prepared = prepare(model)
    else:
        prepared = prepare(_request(model, dataset, threat_model, n, fields | {"suite": suite}))
    # A validation has a run of its own for each model, beside the suite's.
    with shown(prepared.jobs + len(prepared.planned), listener, progress) as told:
        return validate_prepared(prepared, told)


def _say_what_failed(stored: StoredRecord) -> None:
    """Inputs on which the model failed under attack have no adversarial input to hand back."""
    failed = stored.table[stored.table["outcome"] == Outcome.ERRORED]
    if failed.empty:
        return
    record = stored.record
    attacked = record.n - record.count(Outcome.CLEAN_ERROR)
    said = f"the model failed on {len(failed)} of {attacked} inputs under {record.attack.name}"
    first = failed["message"].iloc[0]
    if len(failed) == attacked:
        raise ModelError(f"{said}: {first}", where=record.model.id)
    warnings.warn(f"{said}, which may be unchanged; on the first: {first}", stacklevel=3)


def _classes_of(model: nn.Module, inputs: Any) -> int | None:
    """As many as its output has; None: the labels have to tell."""
    if isinstance(model, RobenchModel):
        return model.num_classes
    try:
        nobodys = torch.zeros(len(inputs), dtype=torch.int64)
    except TypeError as error:
        raise UsageError(
            f"inputs are of type {type(inputs).__name__}, no batch",
            hint="Give a tensor or array (N, C, H, W)",
        ) from error
    few = from_torch((inputs, nobodys), num_classes=2).batch(range(min(2, len(nobodys))))
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    try:
        with undisturbed(model), torch.no_grad():
            logits = model.eval()(few.to(device_of(model), kinds[0] if kinds else few.dtype))
    except Exception:  # What it raises is told, in one line, once the request is checked.
        return None
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else None


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
