"""Models of RobustBench's collection, through its own package."""

from __future__ import annotations

from typing import Final

from torch import nn

from robench.errors import CheckpointError, MissingDependencyError, UsageError, one_line
from robench.models.own_modules import wrap_module
from robench.models.wrapper import RobenchModel
from robench.registry import near_misses
from robench.threat_models import ThreatModel

__all__ = ["load_from_robustbench"]

_CLASSES: Final = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}

# What its threat models mean, from its documentation: the radius differs by data set.
_RADII: Final = {
    ("cifar10", "Linf"): "Linf-8/255",
    ("cifar10", "L2"): "L2-0.5",
    ("cifar100", "Linf"): "Linf-8/255",
    ("imagenet", "Linf"): "Linf-4/255",
}


def load_from_robustbench(address: str) -> RobenchModel:
    """``cifar10/Linf/Wang2023Better_WRN-28-10`` → the wrapped model.

    RobustBench's package downloads, unpacks and builds it; its networks normalise for
    themselves and take inputs in [0, 1].

    Raises:
        UsageError: the address has another form, or an unknown data set or threat model.
        MissingDependencyError: the package is not installed.
        CheckpointError: it cannot load the model.
    """
    dataset, _, rest = address.partition("/")
    threat, _, name = rest.partition("/")
    if not name or "/" in name:
        raise UsageError(
            f"{address!r} is not a RobustBench address",
            hint="Write it as robustbench:cifar10/Linf/NAME",
        )
    known = {"/".join(pair): pair for pair in _RADII}
    if f"{dataset}/{threat}" not in known:
        close = near_misses(f"{dataset}/{threat}", list(known)) or sorted(known)
        raise UsageError(f"RobustBench has no {dataset}/{threat}", hint=f"Use {' or '.join(close)}")
    try:
        # Optional package, needed for this source only.
        from robustbench.utils import load_model
    except ImportError as error:
        raise MissingDependencyError(
            "robustbench is not installed",
            where=f"robustbench:{address}",
            hint="pip install git+https://github.com/RobustBench/robustbench.git",
        ) from error
    try:
        module: nn.Module = load_model(model_name=name, dataset=dataset, threat_model=threat)
    except Exception as error:  # Unknown names and failed downloads raise whatever comes.
        raise CheckpointError(
            f"cannot be loaded: {type(error).__name__}: {one_line(error)}",
            where=f"robustbench:{address}",
        ) from error
    return wrap_module(
        module,
        num_classes=_CLASSES[dataset],
        name=name,
        dataset=dataset,
        threat_model=ThreatModel.parse(_RADII[dataset, threat]),
        share=True,
    )
