"""The doctor's checks by name, in the order of their findings.

A check is one function and one entry here, or an entry point of the group ``robench.checks`` in a
package from outside.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from robench.doctor.accuracy import accuracy
from robench.doctor.behaviour import batch_mates, changed_state, dynamic, modes, randomised
from robench.doctor.gradients import gradients
from robench.doctor.half_precision import half_precision
from robench.doctor.history import history
from robench.doctor.normalisation import normalisation
from robench.doctor.outputs import coarse_margins, constant_outputs, kind_of_outputs
from robench.doctor.subject import Finding, Subject
from robench.registry import Registry

BRIEF = 128
"""The samples that a short examination looks at."""


@dataclass(frozen=True)
class Check:
    """One check on logits.

    Attributes:
        function: what it finds on a model and samples.
        samples: how many it is given; None: all.
        brief: how many it is given before a run.
    """

    function: Callable[[Subject], Iterable[Finding]]
    samples: int | None = None
    brief: int = BRIEF

    def __call__(self, subject: Subject, *, brief: bool) -> Iterable[Finding]:
        """What it finds on as many samples as it is given."""
        n = self.brief if brief else self.samples
        whole = n is None or n >= len(subject.labels)
        return self.function(subject if whole else subject.at(slice(n)))


CHECKS: Final[Registry[Check]] = Registry("check", "robench.checks")

for _name, _check in {
    "modes": Check(modes, 1, 1),
    "history": Check(history, 16, 4),  # early, for it is of a model that was asked little
    "state": Check(changed_state, 16, 8),
    "randomness": Check(randomised, 128, 8),
    "adaptation": Check(dynamic, 2, 2),
    "batch mates": Check(batch_mates, 64, 16),
    "outputs": Check(kind_of_outputs),
    "constant outputs": Check(constant_outputs),
    "coarse margins": Check(coarse_margins),
    "normalisation": Check(normalisation, 1, 1),
    "accuracy": Check(accuracy),
    "gradients": Check(gradients, 64, 8),
    "half precision": Check(half_precision, 8, 4),
}.items():
    CHECKS.add(_name, _check)
