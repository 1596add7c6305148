"""The models and samples that a request names: found, checked against each other, and loaded."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from robench.datasets import DATASETS, Dataset, from_torch, load_dataset
from robench.datasets.pixels import DARK
from robench.errors import CardError, UsageError
from robench.models import wrap_module
from robench.models.catalogue import SOURCES
from robench.models.drafting import draft_card
from robench.models.given import check_models
from robench.models.loading import as_it_is_now, load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import LocatedCard, find_card, list_cards
from robench.models.zoo_folders import zoo_folders
from robench.records import (
    LIBRARIES,
    ArchitectureSpec,
    Flag,
    ForwardSpec,
    InputSpec,
    ModelCard,
    PreprocessingSpec,
    parse,
)
from robench.records.base import Frozen
from robench.request import DEFAULT_DATASET, Request
from robench.threat_models import ThreatModel, parse_norm, parse_radii

PROBE = 8
"""Samples that are tried out before hours are spent."""

_NO_OPTIONS = {"split", "root", "n", "download", "preprocessing", "trust_code"}

Spec = TypeVar("Spec", bound=Frozen)

Samples = Callable[[PreprocessingSpec | None], Dataset]
"""The samples, prepared for a model whose card says this."""

Chosen = LocatedCard | str | nn.Module
"""A model to be loaded: its card; a weights file or an address; or the module itself."""


def load_requested(request: Request) -> list[tuple[RobenchModel, Dataset]]:
    """The models of a request, loaded, each with the samples as it wants them prepared.

    Raises:
        RobenchError: as :func:`choose_models`, :func:`robench.models.load_model`,
            :func:`robench.models.load_checkpoint`, :func:`robench.models.wrap_module` and
            :func:`robench.datasets.load_dataset`; masks that cannot be read.
    """
    chosen, data = choose_models(request)
    _check_threats(request, [m.card.threat_model for m in chosen if isinstance(m, LocatedCard)])
    # Prepared once for each preprocessing that models want.
    samples = cache(partial(load_samples, replace(request, dataset=data)))
    loaded = [_load(request, model, samples) for model in chosen]
    for model, dataset in loaded:
        if dataset.dark:
            _remark(model, "dark_inputs", f"{dataset.name}: {DARK}")
    return loaded


def choose_models(request: Request) -> tuple[list[Chosen], Any]:
    """The models, found but not loaded, and the data set: its name, or what the request gives.

    Raises:
        UnknownNameError: no such model; near misses are listed.
        UsageError: the models are for different data sets, a weights file comes without an
            architecture, or the zoo has no model for the data set.
        CardError: a card that breaks the schema.
    """
    check_models(request.models)
    _check_belonging(request)
    if not request.models:
        data = DEFAULT_DATASET if request.dataset is None else request.dataset
        name = data.name if isinstance(data, Dataset) else str(data)
        cards = list_cards(name)
        if not cards:
            _refuse_unknown(name)
            raise UsageError(
                f"the zoo has no model for {name!r}",
                hint="Name a model, a card or a weights file; `robench zoo list` shows the zoo",
            )
        return list(cards), data
    narrow = _zoo_name(request.dataset)
    found = [_choose(request, model, narrow) for model in request.models]
    return found, _common_dataset(found) if request.dataset is None else request.dataset


def _choose(request: Request, model: Any, narrow: str | None) -> Chosen:
    if isinstance(model, LocatedCard | nn.Module):
        return model
    text = str(model)
    source, colon, _ = text.partition(":")
    if colon and source in SOURCES:
        return text
    path = Path(text)
    if os.path.isfile(path) and path.suffix != ".toml":
        _architecture(request, text)
        return text
    return find_card(text, narrow)


def _common_dataset(found: Sequence[Chosen]) -> str:
    named = {located.card.dataset for located in found if isinstance(located, LocatedCard)}
    if len(named) > 1:
        raise UsageError(
            f"the models are for different data sets: {', '.join(sorted(named))}",
            hint="Choose one with --dataset",
        )
    if not named:
        raise UsageError("no data set is named", hint="Choose one with --dataset")
    return named.pop()


def _zoo_name(dataset: Any) -> str | None:
    """The data set's name, if it narrows a model's: the zoo has models for it."""
    if isinstance(dataset, str | Path):
        if not _is_registered(str(dataset)):
            return None
        _refuse_unknown(str(dataset))
        return str(dataset)
    if isinstance(dataset, Dataset) and _has_models(dataset.name):
        return dataset.name
    return None


def _has_models(dataset: str) -> bool:
    """Whether the zoo has a model for a data set of this name; most that are given are in no folder of
    it, and no card is read for them."""
    there = any((folder / dataset).is_dir() for folder in zoo_folders())
    return there and bool(list_cards(dataset, problems=[]))


def _is_registered(dataset: str) -> bool:
    return not os.path.exists(dataset) and ":" not in dataset


def _refuse_unknown(dataset: str) -> None:
    """A misspelt data set has no models either: say that it is the data set's name."""
    if not _is_registered(dataset) or dataset in DATASETS:
        return
    if dataset not in {located.card.dataset for located in list_cards(problems=[])}:
        DATASETS.summary(dataset)


def load_samples(request: Request, preprocessing: PreprocessingSpec | None = None) -> Dataset:
    """The samples of a request whose data set is known, prepared as a model's card says.

    Samples that are given stay as they are.

    Raises:
        RobenchError: as :func:`robench.datasets.load_dataset` and :func:`robench.datasets.from_torch`;
            samples that change when they are read again; masks that cannot be read.
    """
    if isinstance(request.dataset, str | Path):
        other = sorted({*request.dataset_options} & _NO_OPTIONS)
        if other:
            raise UsageError(
                f"{other[0]} is no option of a data set", hint="It is one of the command itself"
            )
        whole = load_dataset(
            str(request.dataset),
            split=request.split,
            root=request.data_root,
            download=request.download,
            preprocessing=preprocessing,
            trust_code=request.trust_code,
            **dict(request.dataset_options),
        )
    elif isinstance(request.dataset, Dataset):
        whole = request.dataset
    else:
        whole = from_torch(request.dataset, num_classes=request.num_classes)
    most = len(whole) if request.at_most is None else min(request.at_most, len(whole))
    samples = whole.subset(most if request.n is None else request.n)
    samples.check_reads_alike()
    # Masks are needed only after the attacks; a wrong folder should not be found out then.
    samples.masks(range(min(PROBE, len(samples))))
    return samples


def _load(request: Request, model: Chosen, samples: Samples) -> tuple[RobenchModel, Dataset]:
    if isinstance(model, RobenchModel):
        return _prepared_alike(as_it_is_now(model), samples(model.preprocessing))
    if isinstance(model, nn.Module):
        dataset = samples(None)
        wrapped = wrap_module(
            model,
            num_classes=request.num_classes or dataset.num_classes,
            input=_input_spec(request, dataset, request.name),
            forward=_spec(ForwardSpec, request.forward, request.name),
            name=request.name,
            dataset=dataset.name,
            threat_model=_assumed_threat(request, "a module"),
        )
        return wrapped, dataset
    if isinstance(model, LocatedCard) or request.architecture is None:
        loaded = load_model(model, trust_pickle=request.trust_pickle, trust_code=request.trust_code)
        return _prepared_alike(loaded, samples(loaded.preprocessing))
    dataset = samples(None)
    card = draft_requested(request, model, dataset)
    loaded = load_model(card, trust_pickle=request.trust_pickle)
    library, colon, _ = card.architecture.name.partition(":")
    if colon and library in LIBRARIES and card.input.mean is None:
        _remark(
            loaded,
            "normalisation_unknown",
            f"the network of {library} was given inputs in [{card.input.low:g}, "
            f"{card.input.high:g}] as they are, for neither its weights file nor --input says by "
            "which mean and std it normalises",
        )
    return loaded, dataset


def _prepared_alike(model: RobenchModel, dataset: Dataset) -> tuple[RobenchModel, Dataset]:
    """Both; the model's records say so where its own way to prepare images was not taken."""
    wanted, done = model.preprocessing, dataset.preprocessing
    if wanted is not None and wanted != done:
        _remark(
            model,
            "other_preprocessing",
            f"the model's images are to be prepared by {_in_words(wanted)}; these samples were "
            f"prepared by {'nothing' if done is None else _in_words(done)}",
        )
    return model, dataset


def _in_words(spec: PreprocessingSpec) -> str:
    return ", ".join(f"{k} {v}" for k, v in spec.model_dump(exclude_none=True).items())


def _remark(model: RobenchModel, name: str, evidence: str) -> None:
    model.remarks += (Flag(name=name, severity="warning", evidence=evidence),)


def draft_requested(
    request: Request,
    weights: str | Path,
    samples: Dataset,
    *,
    name: str | None = None,
    defense: str = "unknown",
) -> ModelCard:
    """A card for a weights file without one, from what the request says of it.

    Raises:
        UsageError: the request names no architecture or no ε.
        RobenchError: as :func:`robench.models.draft_card`.
    """
    place = dict(request.weights)
    if unknown := sorted(place.keys() - {"key", "strip_prefix"}):
        raise UsageError(
            f"{unknown[0]!r} says nothing of where the network is",
            where="--weights",
            hint="Write key=… or strip_prefix=…",
        )
    return draft_card(
        weights,
        parse(
            ArchitectureSpec,
            {
                "name": _architecture(request, weights),
                "arguments": dict(request.architecture_arguments),
            },
            UsageError,
            where="--arch-arg",
        ),
        num_classes=samples.num_classes,
        dataset=samples.name,
        threat_model=_assumed_threat(request, "a weights file"),
        name=name,
        defense=defense,
        input=_input_spec(request, samples, "--input"),
        forward=_spec(ForwardSpec, request.forward, "--forward"),
        preprocessing=samples.preprocessing,
        key=place.get("key"),
        prefix=place.get("strip_prefix"),
        trust_pickle=request.trust_pickle,
    )


def _architecture(request: Request, weights: str | Path) -> str:
    if request.architecture is None:
        raise UsageError(
            "is a weights file, not a card",
            where=weights,
            hint="Name its architecture with --arch (`program` for TorchScript and "
            "torch.export files)",
        )
    return request.architecture


def _input_spec(request: Request, dataset: Dataset, where: str) -> InputSpec:
    if isinstance(request.input, InputSpec):
        return request.input
    return _spec(InputSpec, {"channels": dataset.input_shape[0], **dict(request.input)}, where)


def _spec(kind: type[Spec], given: Spec | Mapping[str, Any], where: str) -> Spec:
    return parse(kind, given if isinstance(given, kind) else dict(given), CardError, where=where)


def _check_belonging(request: Request) -> None:
    """Refuse what says something about models or data that the request does not have."""
    bare = sum(
        isinstance(model, nn.Module) and not isinstance(model, RobenchModel)
        for model in request.models
    )
    about_weights = (
        request.architecture_arguments
        or request.weights
        or (not bare and (request.input or request.forward))
    )
    if request.architecture is None and about_weights:
        raise UsageError(
            "--arch-arg, --weights, --input and --forward are for weights without a card",
            hint="Name their architecture with --arch",
        )
    if bare > 1:
        raise UsageError(
            f"{bare} modules under one name",
            where=request.name,
            hint="Give each its own with robench.models.wrap_module(…, name=…)",
        )
    about_files = (request.split, request.data_root, request.download, *request.dataset_options)
    named = request.dataset is None or isinstance(request.dataset, str | Path)
    if not named and about_files != (Request.split, None, False):
        raise UsageError(
            "split, data_root, dataset_options and download are for a data set that is named",
            hint="Leave them out, or name the data set",
        )


def threat_models_for(request: Request, own: ThreatModel) -> tuple[ThreatModel, ...]:
    """What to evaluate under, for a model whose own threat model is ``own``: one for each radius."""
    if request.goal == "corrupted":
        return (ThreatModel.corruptions(),)
    if request.norm is None and request.eps is None:
        return (own,)
    if request.eps is None:
        norm = parse_norm(str(request.norm))
        if norm == own.norm:
            return (own,)
        raise UsageError(
            f"--norm {norm} without --eps", hint="A radius belongs to a norm: write --eps 0.5 too"
        )
    return ThreatModel.each(own.norm if request.norm is None else request.norm, request.eps)


def _check_threats(request: Request, owns: Sequence[ThreatModel]) -> None:
    """Refuse, before weights are read, what cannot be evaluated under for models of these."""
    for own in owns:
        threat_models_for(request, own)
    norms = sorted({own.norm for own in owns})
    if request.norm is None and len(norms) > 1 and _is_list(request):
        raise UsageError(
            f"several radii for models of several norms, {' and '.join(norms)}",
            hint="Choose one with --norm",
        )


def _is_list(request: Request) -> bool:
    return request.eps is not None and len(parse_radii(request.eps)) > 1


def _assumed_threat(request: Request, model: str) -> ThreatModel:
    if request.goal == "corrupted":
        return ThreatModel.corruptions()
    if request.eps is None:
        raise UsageError(
            f"{model} does not say what to evaluate it under",
            hint="Add --norm and --eps, such as --norm Linf --eps 8/255; from Python "
            "threat_model='Linf-8/255'",
        )
    return ThreatModel.each("Linf" if request.norm is None else request.norm, request.eps)[-1]
