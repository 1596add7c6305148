"""Whether the clean accuracy is what such a model should have, and what would raise it.

The usual reasons for a low one are an input range, a normalisation or an order of channels other
than in training, and classes in another order. Each is tried, and compared with the card's own
reading on the same samples.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import bdtrc
from torch import Tensor

from robench.doctor.readings import WORTHWHILE, better_reading, gain, most_frequent, percent
from robench.doctor.subject import Finding, Subject, listed
from robench.formatting import number

_POWER = 0.99


def labels_in_range(labels: Tensor, num_classes: int) -> tuple[Tensor, list[Finding]]:
    """Which labels are classes of the model, bool (N,), and a finding if some are not."""
    inside = (labels >= 0) & (labels < num_classes)
    outside = int((~inside).sum())
    if not outside:
        return inside, []
    low, high = int(labels.min()), int(labels.max())
    from_one = low == 1 and high == num_classes
    return inside, [
        Finding(
            name="labels_out_of_range",
            severity="severe",
            evidence=f"{outside} of {len(labels)} labels are not in 0..{num_classes - 1}; "
            f"they go from {low} to {high}",
            mend="Labels count from 0: subtract 1"
            if from_one
            else "Choose the data set that the model was trained for, or correct num_classes",
            count=outside,
        )
    ]


def accuracy(subject: Subject) -> list[Finding]:
    """An accuracy near chance, and the reading or order of classes that explains it."""
    explained = [*better_reading(subject), *_permuted_classes(subject)]
    return explained or [*_one_class(subject)] or [*_near_chance(subject)]


def _one_class(subject: Subject) -> Iterator[Finding]:
    n = len(subject.labels)
    labels, predicted = set(subject.labels.tolist()), set(subject.predictions.tolist())
    # Ten samples of several classes: one predicted class is then no accident.
    if len(predicted) == 1 and len(labels) > 1 and n >= 10:
        yield Finding(
            name="one_class_predicted",
            severity="severe",
            evidence=f"all {n} samples of {len(labels)} classes are predicted as class "
            f"{predicted.pop()}",
            mend="Check the input range in the card, and that training did not collapse",
        )


def _near_chance(subject: Subject) -> Iterator[Finding]:
    n, classes = len(subject.labels), subject.model.num_classes
    chance = 1 / classes
    right = int(subject.correct.sum())
    # So many correct ones that guessing reaches them once in a hundred times.
    needed = int(np.argmax(bdtrc(np.arange(n + 1), n, chance) <= 0.01)) + 1
    # A model half-way between chance and perfection must be sure to reach them, else n is too
    # small to say anything.
    if right >= needed or bdtrc(needed - 1, n, (1 + chance) / 2) < _POWER:
        return
    yield Finding(
        name="accuracy_near_chance",
        severity="severe",
        evidence=f"{right} of {n} samples are classified correctly "
        f"({number(100 * subject.clean_acc)} %; chance: {number(100 * chance)} %), and no usual range, "
        "normalisation, channel order or order of classes raises that",
        mend="Check that these are the trained weights, their data set, and its preprocessing",
        count=right,
    )


def _permuted_classes(subject: Subject) -> Iterator[Finding]:
    """Whether another order of classes fits much better, on samples that did not choose it."""
    n, classes = len(subject.labels), subject.model.num_classes
    # With so few wrong no order gains enough, and SciPy's optimisation need not be loaded.
    if n < 2 or (n - int(subject.correct.sum())) / n < WORTHWHILE:
        return
    predicted, labels = subject.predictions.cpu(), subject.labels.cpu()
    correct = torch.zeros(n, dtype=torch.bool)
    for fold in range(2):
        held_out = torch.arange(n) % 2 == fold
        order = _assign(predicted[~held_out], labels[~held_out], classes)
        correct[held_out] = order[predicted[held_out]] == labels[held_out]
    more = gain(correct, subject.correct.cpu())
    if more is None or float(correct.float().mean()) <= most_frequent(labels):
        return
    order = _assign(predicted, labels, classes)
    moved = (order != torch.arange(classes)).nonzero().squeeze(1).tolist()
    pairs = [f"{output} is class {int(order[output])}" for output in moved]
    yield Finding(
        name="class_order",
        severity="severe",
        evidence=f"with its outputs in another order the model classifies {percent(correct)} "
        f"% of held-out samples correctly instead of {percent(subject.correct)} %: "
        f"output {listed(pairs, 6)}",
        mend="Give the data the order of classes that training had (of folders: --dataset-option "
        "class_names=A,B,… with all of them), or reorder the rows of the network's last layer",
        count=len(moved),
    )


def _assign(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The one-to-one order, int64 (K,): predicted output → class, that fits best."""
    # Imported here: SciPy takes a moment, and other checks do without.
    from scipy.optimize import linear_sum_assignment

    confusion = torch.bincount(predicted * classes + labels, minlength=classes**2)
    scores = confusion.view(classes, classes).double()
    # Where samples do not decide, a class stays where it is.
    scores += 0.5 * torch.eye(classes, dtype=torch.float64)
    _, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    return torch.from_numpy(columns).to(torch.int64)
