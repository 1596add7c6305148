"""The tests for masked gradients by name, in the order of their diagnoses.

A test is one function in a file of its own and one entry here, or an entry point of the group
``robench.diagnoses`` in a package from outside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from robench.doctor.subject import Subject
from robench.errors import first_line
from robench.records import Diagnosis
from robench.registry import Registry
from robench.threat_models import ThreatModel
from robench.validity.attack_failure import attack_failure
from robench.validity.binarisation import binarisation
from robench.validity.continuity import continuity
from robench.validity.fidelity import fidelity
from robench.validity.hidden_outputs import hidden_outputs
from robench.validity.resolution import resolution
from robench.validity.stability import stability

MOST = 64
"""The samples that a test looks at."""


@dataclass(frozen=True)
class Test:
    """One test.

    Attributes:
        function: what it says of a model under a threat model, from correctly classified samples and
            a seed: a diagnosis, or several under names of their own. The same seed gives the same,
            whatever was drawn before.
        samples: how many samples it is given at most.
    """

    __test__: ClassVar[bool] = False  # pytest takes every Test for one of its own

    function: Callable[[Subject, ThreatModel, int], Diagnosis | list[Diagnosis]]
    samples: int = MOST

    def __call__(
        self, subject: Subject, threat_model: ThreatModel, seed: int
    ) -> Diagnosis | list[Diagnosis]:
        """What it says of as many samples as it is given."""
        return self.function(subject.at(slice(self.samples)), threat_model, seed)


DIAGNOSES: Final[Registry[Test]] = Registry("diagnosis", "robench.diagnoses")

_TESTS: Mapping[str, Test] = {
    "fidelity": Test(fidelity),
    "continuity": Test(continuity),
    "stability": Test(stability),
    "resolution": Test(resolution),
    "hidden_outputs": Test(hidden_outputs),
    "attack_failure": Test(attack_failure, 32),
    "binarisation": Test(binarisation, 16),
}

for _name, _test in _TESTS.items():
    DIAGNOSES.add(_name, _test)


def diagnose(
    subject: Subject, threat_model: ThreatModel, seed: int, registry: Registry[Test] = DIAGNOSES
) -> list[Diagnosis]:
    """What every test says, in the catalogue's order.

    ``subject`` holds correctly classified samples. A test that raises is undefined, and one that says
    one thing answers under the name that it is registered by.
    """
    found: list[Diagnosis] = []
    for name in registry:
        try:
            if not len(subject.labels):
                raise ValueError("no sample is classified correctly")
            said = registry[name](subject, threat_model, seed)
            if isinstance(said, Diagnosis):
                said = [said.model_copy(update={"test": name})]
            found += said
        except Exception as error:  # Foreign code may raise anything.
            evidence = f"the test ended with {type(error).__name__}: {first_line(error)}"
            found.append(Diagnosis(test=name, outcome="undefined", evidence=evidence))
    return found
