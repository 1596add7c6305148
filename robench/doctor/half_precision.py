"""Whether float16 could hold what the network computes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from robench.doctor.subject import Finding, Subject, listed

_LIMIT = torch.finfo(torch.float16).max
_SENTINEL = 1e37
"""Beyond this lie masks such as ``finfo.min``, which follow the type they are used in."""


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest finite magnitude that any operator returns, and which returned it.

    Hooks on modules would miss what is computed between them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0.0
        self.operator = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its whole compiler to keep it away from this mode.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        if "empty" in str(func):  # memory that nothing was written to yet
            return returned
        for value in returned if isinstance(returned, (tuple, list)) else (returned,):
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                sizes = value.detach().abs()
                usual = sizes[sizes < _SENTINEL]
                size = float(usual.max()) if usual.numel() else 0.0
                if size > self.size:
                    self.size, self.operator = size, str(func)
        return returned


@torch.no_grad()
def half_precision(subject: Subject) -> Iterator[Finding]:
    """Values beyond float16's largest, 65,504, in the weights or on the way to the logits."""
    heavy = [
        name
        for name, tensor in subject.model.network.named_parameters()
        if tensor.numel() and float(tensor.abs().nan_to_num(posinf=0.0).max()) > _LIMIT
    ]
    with _Largest() as largest:
        subject.call(subject.inputs)
    if largest.size > _LIMIT or heavy:
        weights = f"; weights beyond it: {listed(heavy)}" if heavy else ""
        yield Finding(
            name="fp16_overflow",
            severity="warning",
            evidence=f"values reach {largest.size:.3g} (in {largest.operator}) on the way to the "
            f"logits, float16 ends at {_LIMIT:.0f}{weights}",
            mend="Search in bf16, tf32 or fp32 (--precision), not fp16; an input range of "
            "[0, 255] in the card is often the reason",
        )
