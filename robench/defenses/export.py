"""A finished run's files: the weights, then the card that vouches for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import save

from robench.defenses.training_state import Best
from robench.files import atomic_write
from robench.models.cards import CARD_NAME, write_card
from robench.records import ModelCard

__all__ = ["WEIGHTS_NAME", "export_model"]

WEIGHTS_NAME = "weights.safetensors"

_FIGURES = ("clean_acc", "robust_acc")


def export_model(card: ModelCard, best: Best, folder: Path, *, note: str | None = None) -> Path:
    """Write ``weights.safetensors`` and ``card.toml``; the card last, as it makes the model.

    Args:
        card: complete but for the weights' hash and the validation figures.
        best: the weights and their figures.
        folder: where to write.
        note: to be added to the card's notes.

    Returns:
        The card's path.

    Raises:
        StoreError: the folder cannot be written.
    """
    content = save(best.weights)
    atomic_write(folder / WEIGHTS_NAME, content)
    figures = {name: round(best.figures[name], 2) for name in _FIGURES}
    notes = " ".join(part for part in (card.provenance.notes, note) if part) or None
    finished = card.model_copy(
        update={
            "weights": card.weights.model_copy(
                update={"path": WEIGHTS_NAME, "sha256": hashlib.sha256(content).hexdigest()}
            ),
            "provenance": card.provenance.model_copy(
                update={"validation": {**figures, "epoch": float(best.epoch)}, "notes": notes}
            ),
        }
    )
    return write_card(finished, folder / CARD_NAME)
