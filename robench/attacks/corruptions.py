"""Common corruptions as trials: nobody searches, each is judged for every sample.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

from torch import Tensor

from robench.corruptions import CONSTANTS, CORRUPTIONS, Constants, constants_for, corrupt
from robench.errors import AttackError
from robench.records.corruptions import BENCHMARK, FURTHER, SEVERITIES, trial_name
from robench.registry import unknown_name
from robench.threat_models import GENERATED, ThreatModel


@dataclass(eq=False)
class Corruptions:
    """Every corruption at every severity.

    What has no meaning for images without colours is left out of theirs, by name.

    Args:
        threat_model: corruptions; there is no ball that holds them.
        only: names with commas between them; None: the fifteen of the benchmark and the four
            further ones.
        constants: whose, ``cifar`` or ``imagenet``; None: by the size of the images.
        name: of the entry.

    Raises:
        AttackError: a threat model with an adversary.
        UnknownNameError: no such corruption, or no such set of constants.
    """

    threat_model: ThreatModel
    _: KW_ONLY
    only: str | None = None
    constants: Constants | None = None
    name: str = "corruptions"

    def __post_init__(self) -> None:
        if self.threat_model.corrupted is None:
            raise AttackError(
                f"corruptions stay in no ball such as {self.threat_model}",
                where=self.name,
                hint='Give the entry norms = ["corruptions"], as the suite corruptions does',
            )
        for name in self.chosen:
            if name not in CORRUPTIONS:
                raise unknown_name("corruption", name, list(CORRUPTIONS))
        if self.constants is not None and self.constants not in CONSTANTS:
            raise unknown_name("set of constants", self.constants, list(CONSTANTS))
        if self.constants is not None and self.threat_model.corrupted != GENERATED:
            raise AttackError(
                "constants are what images are made with, and these were published",
                where=self.name,
                hint="Leave out the constants, or the folder of corrupted images",
            )

    @cached_property
    def chosen(self) -> tuple[str, ...]:
        """Names of the corruptions, in the benchmark's order."""
        every = (*BENCHMARK, *FURTHER)
        if self.only is None:
            return every
        wanted = [name.strip() for name in self.only.split(",")]
        return tuple(sorted(wanted, key=lambda name: every.index(name) if name in every else -1))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One for each corruption and severity."""
        return tuple(trial_name(name, s) for name in self.chosen for s in SEVERITIES)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """Of :attr:`names` those that published images have to be there for: those that were chosen,
        else the benchmark's."""
        if self.only is not None:
            return self.names
        return tuple(trial_name(name, s) for name in BENCHMARK for s in SEVERITIES)

    def trial(self, number: int, inputs: Tensor, keys: Tensor) -> Tensor | None:
        """Inputs (B, C, H, W) as a corruption leaves them; None: it has no meaning for them."""
        corruption, severity = self.chosen[number // len(SEVERITIES)], number % len(SEVERITIES)
        if CORRUPTIONS[corruption].of_colours and inputs.shape[1] != 3:
            return None
        constants = self.constants or constants_for(tuple(inputs.shape))
        return corrupt(inputs, keys, corruption, SEVERITIES[severity], constants)
