"""Models: cards, safe loading of checkpoints, the zoo, architectures and the wrapper.

Reading cards and listing the zoo import no torch; the names below load what they need when
they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robench.registry import lazily

if TYPE_CHECKING:
    from robench.models.architectures.build import build_architecture as build_architecture
    from robench.models.cards import read_card as read_card
    from robench.models.cards import write_card as write_card
    from robench.models.catalogue import ARCHITECTURES as ARCHITECTURES
    from robench.models.checkpoints import read_checkpoint as read_checkpoint
    from robench.models.drafting import draft_card as draft_card
    from robench.models.loading import load_checkpoint as load_checkpoint
    from robench.models.loading import load_model as load_model
    from robench.models.loading import wrap_module as wrap_module
    from robench.models.wrapper import RobenchModel as RobenchModel
    from robench.models.wrapper import buffer_fingerprint as buffer_fingerprint
    from robench.models.zoo import find_card as find_card
    from robench.models.zoo import list_cards as list_cards

_HOMES = {
    "catalogue": ("ARCHITECTURES",),
    "architectures.build": ("build_architecture",),
    "cards": ("read_card", "write_card"),
    "checkpoints": ("read_checkpoint",),
    "drafting": ("draft_card",),
    "loading": ("load_checkpoint", "load_model", "wrap_module"),
    "wrapper": ("RobenchModel", "buffer_fingerprint"),
    "zoo": ("find_card", "list_cards"),
}
__all__ = [name for names in _HOMES.values() for name in names]

# torch takes seconds to import; `robench zoo list` must answer at once.
__getattr__ = lazily(__name__, _HOMES)
