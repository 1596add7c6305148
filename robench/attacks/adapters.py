"""Attacks of other packages behind robench's contract: they propose, robench decides.

The reference implementation of AutoAttack, as users run it (package ``pyautoattack``), and the evasion
attacks of the Adversarial Robustness Toolbox, by class name. Both are heavy and imported when used.
"""

import inspect
import logging
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robench.attacks.base import nth_best_rival
from robench.errors import AttackError, MissingDependencyError
from robench.registry import unknown_name
from robench.threat_models import ThreatModel

_VERSIONS = ("standard", "plus", "rand")
_ART_NORMS: dict[str, Any] = {"Linf": np.inf, "L2": 2, "L1": 1}

_ALWAYS_TARGETED = {"SaliencyMapMethod", "LowProFool"}
"""ART's attacks that read the labels as targets and have no parameter that says so"""
_BATCH = 128


@dataclass
class PyAutoAttack:
    """The yardstick: ``run_standard_evaluation`` of pyautoattack.

    Raises:
        AttackError: no such version.
    """

    threat_model: ThreatModel
    _: KW_ONLY
    name: str = "pyautoattack"
    foreign_name: str = "standard"
    """AutoAttack's version, ``standard``, ``plus`` or ``rand``"""
    batch_size: int = 250
    """The reference's result depends on it; 250 is its default"""

    def __post_init__(self) -> None:
        if self.foreign_name not in _VERSIONS:
            raise AttackError(
                f"pyautoattack has no version {self.foreign_name!r}",
                hint=f"Use one of {', '.join(_VERSIONS)}",
            )

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Run the reference on correctly classified inputs (N, C, H, W) in [0, 1].

        Raises:
            MissingDependencyError: the package is not installed.
            AttackError: fewer than four classes.
        """
        try:  # an optional code path; the package is heavy
            from pyautoattack import AutoAttack
        except ImportError as error:
            raise MissingDependencyError(
                "pyautoattack is not installed", hint="pip install pyautoattack"
            ) from error
        logging.getLogger("auto-attack").setLevel(logging.WARNING)
        reference = AutoAttack(
            model,
            norm=self.threat_model.norm,
            eps=self.threat_model.radius,
            seed=seed,
            device=inputs.device,
            version=self.foreign_name,
        )
        with torch.no_grad():
            limit_targets(reference, model(inputs[:1]).shape[1])
        adv_inputs: Tensor
        adv_inputs, _ = reference.run_standard_evaluation(
            inputs, labels, batch_size=self.batch_size
        )
        return adv_inputs.detach()


def limit_targets(reference: Any, num_classes: int) -> None:
    """Let an ``AutoAttack`` aim at no more classes than there are wrong ones.

    It aims at nine whatever the model, and fails on an index where there are fewer.

    Raises:
        AttackError: fewer than four classes, for which its targeted loss is not defined.
    """
    if num_classes < 4:
        raise AttackError(
            f"pyautoattack's targeted DLR loss needs four classes, the model has {num_classes}",
            hint="Use the suite aa-standard, which runs the attacks that are defined",
        )
    for attack in (reference.apgd_targeted, reference.fab):
        attack.n_target_classes = min(attack.n_target_classes, num_classes - 1)


def art_attacks() -> dict[str, type[Any]]:
    """ART's evasion attacks by class name.

    Raises:
        MissingDependencyError: ART is not installed.
    """
    try:  # ART takes seconds to import
        from art.attacks import evasion
        from art.attacks.attack import EvasionAttack
    except ImportError as error:
        raise MissingDependencyError(
            "adversarial-robustness-toolbox is not installed",
            hint="pip install adversarial-robustness-toolbox",
        ) from error
    return {
        name: kind
        for name, kind in vars(evasion).items()
        if inspect.isclass(kind) and issubclass(kind, EvasionAttack)
    }


class ARTAttack:
    """One of ART's evasion attacks.

    ``eps`` and ``norm`` are filled in from the threat model where the attack has them. A step that
    is left out is the same share of ε as ART's default is of ART's ε. A search is untargeted
    unless its parameters say otherwise; it then aims at the likeliest wrong class. All other
    parameters are passed on as they are.

    Args:
        threat_model: the ball.
        foreign_name: ART's class, such as ``CarliniL2Method``.
        params: the class's own parameters.

    Raises:
        UnknownNameError: ART has no such evasion attack.
    """

    def __init__(
        self,
        threat_model: ThreatModel,
        *,
        foreign_name: str,
        name: str = "art",
        **params: Any,
    ) -> None:
        known = art_attacks()
        if foreign_name not in known:
            raise unknown_name("ART evasion attack", foreign_name, sorted(known))
        self.name = name
        self.threat_model = threat_model
        self.kind = known[foreign_name]
        self.params = params

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Run ART's attack with the true labels on inputs (N, C, H, W) in [0, 1].

        Raises:
            AttackError: ART refuses the parameters, or the model.
        """
        # Imported here for the same reason as above.
        from art.estimators.classification import PyTorchClassifier

        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        with torch.no_grad():
            num_classes = model(inputs[:1]).shape[1]
        device = "gpu" if inputs.device.type == "cuda" else "cpu"
        try:
            classifier = PyTorchClassifier(
                model=model,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(inputs.shape[1:]),
                nb_classes=num_classes,
                clip_values=(0.0, 1.0),
                device_type=device,
            )
            attack = self.kind(classifier, **self.parameters())
            # What ART is given is what to leave, or of a targeted search what to reach.
            targeted = getattr(attack, "targeted", self.kind.__name__ in _ALWAYS_TARGETED)
            aims = _best_rivals(model, inputs, labels) if targeted else labels
            adv_inputs = attack.generate(x=inputs.cpu().numpy(), y=aims.cpu().numpy())
        except (TypeError, ValueError) as error:
            raise AttackError(f"ART's {self.kind.__name__}: {error}", where=self.name) from error
        return torch.as_tensor(adv_inputs, dtype=inputs.dtype, device=inputs.device)

    def parameters(self) -> dict[str, Any]:
        """What ART's class is called with: the user's, and what is filled in."""
        defaults = {n: p.default for n, p in inspect.signature(self.kind).parameters.items()}
        from_threat_model = {
            "eps": self.threat_model.radius,
            "norm": _ART_NORMS[self.threat_model.norm],
            "targeted": False,
            "verbose": False,
        }
        filled = {name: value for name, value in from_threat_model.items() if name in defaults}
        filled |= self.params
        own_eps, own_step = defaults.get("eps"), defaults.get("eps_step")
        if _is_number(own_eps) and _is_number(own_step) and _is_number(filled["eps"]):
            filled.setdefault("eps_step", filled["eps"] * own_step / own_eps)
        return filled


def _best_rivals(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = torch.cat([model(part) for part in torch.split(inputs, _BATCH)])
    return nth_best_rival(logits, labels, torch.zeros_like(labels))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
