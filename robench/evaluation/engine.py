"""The engine: keeps one batch of searches full until every sample is broken or done.

It owns the queue of (sample, rank), admits searches into free slots, asks the attack for a step,
has finds adjudicated, drops what is broken or finished, and counts passes. It knows nothing of
any particular attack.

The result does not depend on the batch size, on order, or on where a run was interrupted: draws
are keyed by sample, every search of a lower rank is finished before a find of a higher rank
counts, and the find of the lowest rank is the one that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

import torch
from torch import Tensor

from robench.attacks.base import Attack, StateT
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.passes import Passes
from robench.evaluation.samples import Found, Samples
from robench.evaluation.search import Progress, Search

__all__ = ["Engine", "Found", "Samples"]


class Engine(Generic[StateT]):
    """Runs one attack over samples.

    Args:
        attack: the state machine.
        passes: guarded, counted passes through the search's model.
        adjudicator: judges candidates with the original model.
        batch_size: slots.
        seed_tag: what the draws are keyed by besides the sample; None: the attack's name.
        judges_every_step: adjudicate every candidate, at one forward pass each; for attacks on
            another output of the model, whose margin says nothing certain about the final one.
    """

    def __init__(
        self,
        attack: Attack[StateT],
        passes: Passes,
        adjudicator: Adjudicator,
        *,
        batch_size: int,
        seed_tag: str | None = None,
        judges_every_step: bool = False,
    ) -> None:
        self.attack = attack
        self.passes = passes
        self.adjudicator = adjudicator
        self.batch_size = batch_size
        self.seed_tag = attack.name if seed_tag is None else seed_tag
        self.judges_every_step = judges_every_step

    @torch.no_grad()
    def run(
        self,
        samples: Samples,
        *,
        progress: Progress | None = None,
        snapshot: dict[str, Any] | None = None,
        save: Callable[[Callable[[], dict[str, Any]]], None] | None = None,
        only: Tensor | None = None,
    ) -> Found:
        """Search until every sample is broken or all its searches are done.

        Args:
            samples: the samples, correctly classified ones.
            progress: told about completed steps; their sum is ``total_steps``.
            snapshot: what ``save`` received in an interrupted run of the same attack and samples.
            save: called after each step with a function that makes a snapshot, plain data and
                tensors; it decides when to make and keep one.
            only: bool (n, ranks), the searches that are wanted; None: all.
        """
        run = Search(self, samples, progress, only)
        if snapshot is not None:
            run.restore(snapshot)
        while run.admit():
            run.step()
            if save is not None:
                save(run.snapshot)
        return run.conclude()

    def total_steps(self, samples: Samples) -> int:
        """Steps of all searches, if none ends early."""
        ranks = self.attack.ranks(samples.clean_logits.shape[1])
        return len(samples) * ranks * self.attack.steps()
