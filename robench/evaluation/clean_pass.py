"""The clean pass: logits of all samples as they are, before anything is attacked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel
from robench.datasets import Dataset
from robench.errors import ModelError
from robench.evaluation.queries import Queries
from robench.models.wrapper import RobenchModel

_PROBE = 128  # samples that flags and the choice of precision are based on


def answered(errors: Mapping[int, str], n: int) -> Tensor:
    """int64: the first of n samples that a model does not fail on."""
    return torch.tensor([row for row in range(n) if row not in errors])[:_PROBE]


def classify(
    judge: nn.Module,
    model: RobenchModel,
    dataset: Dataset,
    device: torch.device,
    batch_size: int,
) -> tuple[Tensor, dict[int, str], Tensor]:
    """Clean logits float32 (n, K) on the CPU by ``judge``, and what the model fails on, by sample.

    Also the inputs of the first samples that it has logits for, on the device.
    """
    guarded = Queries(SearchModel(judge), model.num_classes, batch_size)
    parts: list[Tensor] = []
    errors: dict[int, str] = {}
    probe: list[Tensor] = []
    for rows in torch.split(torch.arange(len(dataset)), batch_size):
        inputs = dataset.batch(rows).to(device)
        guarded.reset(len(rows), device)
        parts.append(guarded.logits(inputs).cpu())
        errors |= {int(rows[i]): message for i, message in guarded.failures.items()}
        if sum(map(len, probe)) < _PROBE:
            probe.append(inputs[[i for i in range(len(rows)) if i not in guarded.failures]])
    if len(errors) == len(dataset):
        raise ModelError(
            f"no clean input can be evaluated: {errors[0]}",
            where=model.summary.id,
            hint="Check the input range, the channels and forward.output in its card",
        )
    return torch.cat(parts), errors, torch.cat(probe)[:_PROBE]
