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
from robench.errors import AttackError, MissingDependencyError, RobenchError, one_line
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
    is left out is the same share of ε as ART's default is of ART's ε. A search aims at the threat
    model's targets; where it has none it is untargeted unless its parameters say otherwise, and then
    aims at the likeliest wrong class. All other parameters are passed on as they are.

    Args:
        threat_model: the ball.
        foreign_name: ART's class, such as ``CarliniL2Method``.
        params: the class's own parameters.

    Raises:
        UnknownNameError: ART has no such evasion attack.
        AttackError: the threat model has targets, and ART's class cannot be aimed.
    """

    can_target = True

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
        self.aims = threat_model.targets is not None
        aimable = "targeted" in inspect.signature(self.kind).parameters
        aimable = aimable or foreign_name in _ALWAYS_TARGETED
        if self.aims and not (aimable and params.get("targeted", True)):
            reason = "as targeted is false" if aimable else "as it has no parameter targeted"
            raise AttackError(
                f"ART's {foreign_name} cannot be aimed at targets, {reason}", where=name
            )

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Run ART's attack with the labels, or targets, on inputs (N, C, H, W) in [0, 1].

        Raises:
            AttackError: ART refuses the parameters or the model, fails by itself, or searches in
                another norm than that of the ε that was filled in.
            MissingDependencyError: the attack needs a package that is not installed.
            Exception: whatever the model raises.
        """
        # Imported here for the same reason as above.
        from art.estimators.classification import PyTorchClassifier

        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        with torch.no_grad():
            num_classes = model(inputs[:1]).shape[1]
        device = "gpu" if inputs.device.type == "cuda" else "cpu"
        name = f"ART's {self.kind.__name__}"
        called = _AsCalledByART(model, inputs, name)
        try:
            classifier = PyTorchClassifier(
                model=called,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(inputs.shape[1:]),
                nb_classes=num_classes,
                clip_values=(0.0, 1.0),
                device_type=device,
            )
            attack = self.kind(classifier, **self.parameters())
            self._check_norm(attack)
            # What ART is given is what to leave, or of a targeted search what to reach.
            targeted = getattr(attack, "targeted", self.kind.__name__ in _ALWAYS_TARGETED)
            to_choose = targeted and not self.aims
            aims = _best_rivals(model, inputs, labels) if to_choose else labels
            adv_inputs = attack.generate(x=inputs.cpu().numpy(), y=aims.cpu().numpy())
        except RobenchError:
            raise
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{name} needs the package {error.name!r}, which is not installed",
                where=self.name,
                hint=f"pip install {error.name}",
            ) from error
        except Exception as error:  # ART's attacks raise almost anything.
            if called.failed:
                raise
            kind = "" if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: "
            raise AttackError(f"{name}: {kind}{one_line(error)}", where=self.name) from error
        return torch.as_tensor(adv_inputs, dtype=inputs.dtype, device=inputs.device)

    def _check_norm(self, attack: Any) -> None:
        """Some have a norm of their own and no parameter for it: ε would be of the wrong one."""
        own, asked = getattr(attack, "norm", None), _ART_NORMS[self.threat_model.norm]
        filled_in = hasattr(attack, "eps") and "eps" not in self.params
        if filled_in and "norm" not in self.params and own in _ART_NORMS.values() and own != asked:
            raise AttackError(
                f"ART's {self.kind.__name__} searches in the norm {own}, not in "
                f"{self.threat_model.norm}",
                where=self.name,
                hint="Use another attack, or say with eps how far it may go in its own norm",
            )

    def parameters(self) -> dict[str, Any]:
        """What ART's class is called with: the user's, and what is filled in."""
        defaults = {n: p.default for n, p in inspect.signature(self.kind).parameters.items()}
        from_threat_model = {
            "eps": self.threat_model.radius,
            "norm": _ART_NORMS[self.threat_model.norm],
            "targeted": self.aims,
            "verbose": False,
        }
        filled = {name: value for name, value in from_threat_model.items() if name in defaults}
        filled |= self.params
        own_eps, own_step = defaults.get("eps"), defaults.get("eps_step")
        if _is_number(own_eps) and _is_number(own_step) and _is_number(filled["eps"]):
            filled.setdefault("eps_step", filled["eps"] * own_step / own_eps)
        return filled


class _AsCalledByART(nn.Module):
    """A model as ART's attacks call it: with float64 inputs too, and some with another shape.

    Args:
        model: (N, C, H, W) → logits.
        inputs: such as the model takes.
        attack: what errors call the attack.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, attack: str) -> None:
        super().__init__()
        self.model = model
        self.attack = attack
        self.shape, self.dtype = inputs.shape[1:], inputs.dtype
        self.failed = False
        """The model has raised something"""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1:] != self.shape:
            raise AttackError(
                f"{self.attack} gives the model inputs {tuple(inputs.shape[1:])} instead of "
                f"{tuple(self.shape)}",
                hint="It is for other models, or needs further parameters",
            )
        try:
            logits: Tensor = self.model(inputs.to(self.dtype))
        except Exception:
            self.failed = True
            raise
        return logits


def _best_rivals(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = torch.cat([model(part) for part in torch.split(inputs, _BATCH)])
    return nth_best_rival(logits, labels, torch.zeros_like(labels))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
