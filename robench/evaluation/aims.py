"""What is attacked, and towards what: the samples, each with the class that the goal is about.

An untargeted attack is to lead each sample away from its label; that of an adversary with targets
to the one that the threat model's rule gives it. Under the rule ``all`` a sample is attacked once
for each wrong class, and :func:`by_sample` puts together what came of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench import seeding
from robench.datasets import Dataset
from robench.evaluation.adversarial_inputs import PickedInputs, ReadInputs
from robench.evaluation.cascade_state import CascadeState


@dataclass(frozen=True)
class Aims:
    """What is attacked, a of them. The attack's positions are places in these tensors."""

    sample: Tensor
    """int64 (a,): which of the samples; several times under the rule ``all``, one after the other"""
    classes: Tensor
    """int64 (a,): the label to leave, or the target to reach"""

    def __len__(self) -> int:
        return len(self.sample)


def choose_aims(
    targets: str | None, dataset: Dataset, logits: Tensor, correct: Tensor, seed: int
) -> tuple[Tensor, Aims]:
    """The rows of the samples to attack, int64 (m,), and what they are attacked for.

    ``targets`` is a threat model's. Clean logits (n, K) and ``correct``, bool (n,), are of all samples;
    those that are not correct, or whose label is the target, are left out.
    """
    labels = dataset.labels
    if targets is not None and targets != "all":
        keys = seeding.sample_keys(seed, dataset.sample_ids)
        chosen = target_classes(targets, logits, labels, keys)
        rows = (correct & (chosen != labels)).nonzero().squeeze(1)
        return rows, Aims(torch.arange(len(rows)), chosen[rows])
    rows = correct.nonzero().squeeze(1)
    if targets is None:
        return rows, Aims(torch.arange(len(rows)), labels[rows])
    classes = torch.arange(logits.shape[1])
    wrong = (classes != labels[rows][:, None]).nonzero()
    return rows, Aims(*wrong.unbind(dim=1))


def target_classes(rule: str, logits: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
    """The target of each sample, int64 (n,), by any rule that gives one.

    Whatever the rule, it depends on the sample alone: on its label, its clean logits (n, K), or its
    key (n,).
    """
    count = logits.shape[1]
    if rule == "next":
        return (labels + 1) % count
    if rule == "least-likely":
        # Of equal logits, and of a model that says nothing, it still is a wrong class.
        return logits.scatter(1, labels[:, None], torch.inf).argmin(dim=1)
    if rule == "random":
        ahead = seeding.integers(seeding.derive(keys, seeding.tag("target")), count - 1, ())
        return (labels + 1 + ahead) % count
    return torch.full_like(labels, int(rule))


@dataclass(frozen=True)
class BySample:
    """What came of the attacks on each sample, m of them."""

    state: CascadeState
    adv_inputs: ReadInputs
    """(m, C, H, W)"""
    targets: Tensor
    """int64 (m,): the class that the state and the input speak of"""
    reached: Tensor | None
    """float32 (m, K) under the rule ``all``: 1 where the target was reached, 0 where it was not, NaN
    where there is no such target or no verdict; else None"""


def by_sample(state: CascadeState, aims: Aims, num_classes: int, every: bool) -> BySample:
    """A sample's attacks as one; with ``every`` target the sample is broken if one was reached.

    It then stands for the first of the targets that were reached, or where none was for the one that
    came closest. If one failed and none was reached the sample is errored.
    """
    if not every or len(aims) == 0:
        return BySample(state, state.adv_inputs, aims.classes, None)
    wrong = num_classes - 1
    errored = torch.zeros(len(aims), dtype=torch.bool)
    errored[list(state.errors)] = True
    broken = ((state.stage >= 0) & ~errored).view(-1, wrong)
    closeness = torch.where(errored, -torch.inf, _or_infinite(state.margin)).view(-1, wrong)
    first, closest = broken.int().argmax(dim=1), closeness.argmin(dim=1)
    place = torch.arange(len(broken)) * wrong + torch.where(broken.any(dim=1), first, closest)
    verdict = torch.where(errored, torch.nan, broken.flatten().float())
    reached = torch.full((len(broken), num_classes), torch.nan)
    reached[aims.sample, aims.classes] = verdict
    sizes = _or_infinite(state.found_size).view(-1, wrong).amin(dim=1)
    summed = {
        name: getattr(state, name).view(-1, wrong).sum(dim=1) for name in ("forwards", "backwards")
    }
    picked = {name: getattr(state, name)[place] for name in ("prediction", "margin", "size")}
    folded = replace(
        state,
        **summed,
        **picked,
        stage=torch.where(broken.any(dim=1), state.stage[place], -1),
        closest_margin=state.closest_margin[place],
        found_size=torch.where(sizes.isfinite(), sizes, torch.nan),
        search_margins={},
        errors={i: state.errors[p] for i, p in enumerate(place.tolist()) if p in state.errors},
        phases=tuple(replace(c, due=aims.sample[c.due]) for c in state.phases),
    )
    return BySample(folded, PickedInputs(state.adv_inputs, place), aims.classes[place], reached)


def _or_infinite(values: Tensor) -> Tensor:
    return torch.where(values.isnan(), torch.inf, values)
