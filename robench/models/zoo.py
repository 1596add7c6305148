"""Finding cards: the packaged zoo and the user's own folders. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from robench.errors import CardError, UsageError
from robench.files import expanded
from robench.models.cards import read_card
from robench.models.zoo_folders import CARD_NAME, card_files, packaged_zoo
from robench.records import ModelCard
from robench.registry import unknown_name
from robench.threat_models import ThreatModel
from robench.trust import is_trusted


@dataclass(frozen=True)
class LocatedCard:
    """A card and where it was found.

    Args:
        card: the validated card.
        path: the card's file.
        own: it was made just now by whoever asks, so that the code it names is theirs.
    """

    card: ModelCard
    path: Path
    own: bool = False

    @property
    def folder(self) -> Path:
        """The card's folder; relative weights start here."""
        return self.path.parent

    @property
    def id(self) -> str:
        """``dataset/threat/name``."""
        return self.card.id

    @property
    def trusted(self) -> bool:
        """Whether it may name code: it came with robench, or the user has trusted it."""
        return self.path.resolve().is_relative_to(packaged_zoo()) or is_trusted(self.path)


def list_cards(
    dataset: str | None = None, *, problems: list[CardError] | None = None
) -> list[LocatedCard]:
    """All cards of the zoo, sorted by id. An earlier folder's card hides a later one's.

    Args:
        dataset: only cards of this data set.
        problems: where given, unreadable cards are collected here instead of raised, so that
            one broken card does not hide the others.

    Raises:
        CardError: a card breaks the schema, or lies in a folder other than its id says.
    """
    located: dict[str, LocatedCard] = {}
    for path, zoo in card_files().items():
        try:
            card = read_card(path)
            if card.id != (place := path.parent.relative_to(zoo).as_posix()):
                raise CardError(
                    f"the card's id is {card.id!r} but its folder is {place!r}",
                    where=path,
                    hint="Move it, or correct dataset, threat_model or name",
                )
        except CardError as error:
            if problems is None:
                raise
            problems.append(error)
            continue
        if dataset is None or card.dataset == dataset:
            located.setdefault(card.id, LocatedCard(card, path))
    return [located[identifier] for identifier in sorted(located)]


def zoo_cards() -> dict[Path, ModelCard | None]:
    """By file the cards of the zoo, for what shows them where they are there; None: one that cannot be
    read, or is hidden."""
    try:
        found: dict[Path, ModelCard | None] = dict.fromkeys(card_files())
        return found | {located.path: located.card for located in list_cards(problems=[])}
    except UsageError:  # ROBENCH_ZOO names no folder
        return {}


def find_card(
    name: str | os.PathLike[str],
    dataset: str | None = None,
    threat_model: ThreatModel | str | None = None,
) -> LocatedCard:
    """One card by its id, by a shorter name that fits only one, or by path.

    Args:
        name: ``digits/Linf-0.2/pgd-at``, ``Linf-0.2/pgd-at``, ``pgd-at``, or the path of a
            ``card.toml`` or of its folder.
        dataset: narrows a short name.
        threat_model: narrows a short name.

    Raises:
        UnknownNameError: no card has this name; near misses are listed.
        UsageError: the name fits several cards; they are listed.
        CardError: a path to a card that is missing or breaks the schema.
    """
    text = os.fspath(name)
    if isinstance(name, str):
        problems: list[CardError] = []
        cards = list_cards(problems=problems)
        named = [located for located in cards if _answers_to(located.card, text)]
        threat = None if threat_model is None else ThreatModel.parse(threat_model)
        found = [
            located
            for located in named
            if dataset in (None, located.card.dataset)
            and threat in (None, located.card.threat_model)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"model {text!r} is ambiguous",
                hint=f"Say which: {', '.join(located.id for located in found)}",
            )
        if not _looks_like_path(text):
            for problem in problems:
                if problem.where is not None and Path(problem.where).parent.name == text:
                    raise problem
            if named:
                limits = [str(limit) for limit in (dataset, threat_model) if limit is not None]
                raise UsageError(
                    f"no model {text!r} for {' and '.join(limits)}",
                    hint=f"There is {', '.join(located.id for located in named)}",
                )
            known = {located.id if "/" in text else located.card.name for located in cards}
            raise unknown_name("model", text, sorted(known))
    path = expanded(text)
    if os.path.isdir(path):
        path = path / CARD_NAME
    card = read_card(path)
    return LocatedCard(card, path.resolve())


def _answers_to(card: ModelCard, text: str) -> bool:
    """Whether ``text`` is the end of the card's id, where the threat model's fraction may be
    written with a slash too."""
    forms = (card.id, f"{card.dataset}/{card.threat_model}/{card.name}")
    wanted = text.strip("/").casefold()
    return any(f"/{form}".casefold().endswith(f"/{wanted}") for form in forms)


def _looks_like_path(text: str) -> bool:
    return (
        text.endswith(".toml")
        or text.startswith((".", "~"))
        or os.path.isabs(text)
        or os.path.isfile(Path(text, CARD_NAME))
    )
