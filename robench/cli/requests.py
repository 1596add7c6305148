"""What a user asks to have evaluated, checked as far as it goes without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robench.attacks.suites import load_suite
from robench.errors import UsageError
from robench.models.sources import SOURCES
from robench.models.zoo import LocatedCard, find_card, list_cards
from robench.records import ArchitectureSpec, Suite
from robench.threat_models import ThreatModel, parse_norm

__all__ = [
    "DEFAULT_N",
    "Request",
    "check_threat_options",
    "chosen_models",
    "threat_model_for",
]

DEFAULT_N = 500
"""Samples taken where the user does not say; of a smaller data set, all."""

_DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class Request:
    """The options of one evaluation.

    Args:
        models: names, cards, weights files or addresses; none: all of the zoo for the data set.
        dataset: a name, folder or file; None: the one that the models' cards name.
        suite: a name or file.
        n: samples; None: ``DEFAULT_N``, or all of a smaller set.
        norm, eps: in place of the models' own threat model.
        architecture: of weights files that have no card.
        input: what such weights expect (:class:`robench.records.InputSpec`), as plain data.
    """

    models: Sequence[str]
    dataset: str | None
    suite: str
    results: Path
    n: int | None = None
    norm: str | None = None
    eps: str | None = None
    seed: int = 0
    split: str = "test"
    data: Path | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    download: bool = False
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    save_adversarial: bool = False
    architecture: ArchitectureSpec | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    trust_pickle: bool = False
    trust_code: bool = False

    def load_suite(self) -> Suite:
        """The suite.

        Raises:
            UnknownNameError, UsageError: there is none, or its file is wrong.
        """
        path = Path(self.suite)
        named = path if path.suffix == ".toml" else self.suite
        return load_suite(named, trust_code=self.trust_code)


def chosen_models(request: Request) -> tuple[list[LocatedCard | str], str]:
    """The models, as cards or as what the user wrote, and the data set's name.

    What stays text is a weights file without a card, or an address in another collection.

    Raises:
        UnknownNameError: no such model; near misses are listed.
        UsageError: the models are for different data sets, a weights file comes without
            ``--arch``, or the zoo has no model for the data set.
        CardError: a card that breaks the schema.
    """
    if not request.models:
        dataset = request.dataset or _DEFAULT_DATASET
        cards = list_cards(dataset)
        if not cards:
            _refuse_unknown(dataset)
            raise UsageError(
                f"the zoo has no model for {dataset!r}",
                hint="Name a model, a card or a weights file; `robench zoo list` shows the zoo",
            )
        return list(cards), dataset
    narrow = None
    if request.dataset is not None and _is_registered(request.dataset):
        _refuse_unknown(request.dataset)
        narrow = request.dataset
    found: list[LocatedCard | str] = []
    for text in request.models:
        if _is_address(text):
            found.append(text)
        elif _is_weights(text):
            if request.architecture is None:
                raise UsageError(
                    "is a weights file, not a card",
                    where=text,
                    hint="Name its architecture with --arch (`program` for TorchScript and "
                    "torch.export files)",
                )
            found.append(text)
        else:
            found.append(find_card(text, narrow))
    return found, request.dataset or _common_dataset(found)


def threat_model_for(request: Request, own: ThreatModel) -> ThreatModel:
    """What to evaluate under, for a model whose own threat model is ``own``.

    Raises:
        UsageError: norm or ε make no sense, or a norm comes without ε.
    """
    if request.norm is None and request.eps is None:
        return own
    if request.eps is None:
        norm = parse_norm(request.norm or "")
        if norm == own.norm:
            return own
        raise UsageError(
            f"--norm {norm} without --eps", hint="A radius belongs to a norm: write --eps 0.5 too"
        )
    return ThreatModel.of(request.norm or own.norm, request.eps)


def check_threat_options(request: Request) -> None:
    """Refuse a norm or ε that no model could be evaluated under.

    Raises:
        UsageError: norm or ε make no sense.
    """
    if request.norm is not None:
        parse_norm(request.norm)
    if request.eps is not None:
        # The widest norm: whether ε fits the model's own is seen once that is known.
        ThreatModel.of(request.norm or "L1", request.eps)


def _is_address(text: str) -> bool:
    source, colon, _ = text.partition(":")
    return bool(colon) and source in SOURCES


def _is_weights(text: str) -> bool:
    path = Path(text)
    return path.is_file() and path.suffix != ".toml"


def _is_registered(dataset: str) -> bool:
    return not Path(dataset).exists() and ":" not in dataset


def _refuse_unknown(dataset: str) -> None:
    """A misspelt data set has no models either: say that it is the data set's name."""
    if not _is_registered(dataset):
        return
    known = {located.card.dataset for located in list_cards(problems=[])}
    if dataset in known:
        return
    # Loads torch: only on the way to an error.
    from robench.datasets import DATASETS

    DATASETS.summary(dataset)


def _common_dataset(found: Sequence[LocatedCard | str]) -> str:
    named = {located.card.dataset for located in found if isinstance(located, LocatedCard)}
    if len(named) > 1:
        raise UsageError(
            f"the models are for different data sets: {', '.join(sorted(named))}",
            hint="Choose one with --dataset",
        )
    if not named:
        raise UsageError("no data set is named", hint="Choose one with --dataset")
    return named.pop()
