"""A network's own random draws, by sample: what torch draws for a batch, row by row from keys.

What a network draws from torch's generators is a stream: what an input gets depends on how many lie
before it in the batch, and on what was drawn before. In :func:`drawn_by` each row of what is drawn for a
batch of N inputs, a tensor whose first axis is N, is a function of the row's key and of how many such
tensors the pass drew before; torch's own operation makes it, so its distribution is the network's. What is drawn
for all inputs together, and what NumPy and Python draw, begins at one seed in every pass. So an output
depends neither on the batch nor on its place in it, except where a network draws a whole batch from NumPy
or Python, from a generator of its own, or in code that torch does not see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from robench import seeding
from robench.models.wrapper import RobenchModel
from robench.seeding import begin_stream, own_stream

_SAME = 1e-3
"""By what share of the largest logit passes over other batches may differ"""


@contextlib.contextmanager
def drawn_by(keys: Sequence[int], seed: int, device: torch.device) -> Iterator[None]:
    """In it a pass over N inputs on the device draws by their keys, N numbers of 64 bits, and what is drawn
    for all of them together begins at ``seed``. It is for one pass within an :func:`own_stream`."""
    from robench.models.draws_by_row import DrawsByRow  # not every torch need have what it takes

    begin_stream(seed, device)
    with DrawsByRow(keys, seed, device):
        yield


def own_sizes(model: RobenchModel, shape: Sequence[int]) -> frozenset[int]:
    """Numbers that what a model draws for all inputs together may have as its first axis: lengths of its
    tensors' axes and of those of its inputs, (C, H, W); 1 is always one of them."""
    tensors = (*model.parameters(), *model.buffers())
    return frozenset({1, *shape, *(n for tensor in tensors for n in tensor.shape)})


def with_rows_to_spare(count: int, sizes: frozenset[int], device: torch.device) -> Tensor | None:
    """Positions of ``count`` inputs, the last again and again until they are as many as nothing else is,
    int64 (≥ count,); None: they are so as they are."""
    wanted = count
    while wanted in sizes:
        wanted += 1
    if wanted == count:
        return None
    return torch.arange(wanted, device=device).clamp_(max=count - 1)


@torch.no_grad()
def draws_by_keys(model: RobenchModel, inputs: Tensor) -> bool:
    """Whether outputs of inputs (N, C, H, W) are functions of their keys: passes of other batches, in
    another order, give the same."""
    count = len(inputs)
    keys = seeding.sample_keys(0, [str(row) for row in range(count)])
    sizes = own_sizes(model, inputs.shape[1:])

    def passed(rows: Tensor) -> Tensor:
        spare = with_rows_to_spare(len(rows), sizes, inputs.device)
        asked = rows if spare is None else rows[spare]
        with drawn_by(keys[asked.cpu()].tolist(), 0, inputs.device):
            logits: Tensor = model(inputs[asked])
        return logits.float()[: len(rows)]

    everything = torch.arange(count, device=inputs.device)
    try:
        with own_stream(0, inputs.device):
            together = passed(everything)
            parts = torch.split(everything.flip(0), count // 2 + 1)
            apart = torch.cat([passed(part) for part in parts])
    except (
        Exception
    ):  # Torch may lack the hook, compiled code refuse it; a model may raise anything.
        return False
    size = float(together.abs().max())
    return bool(((together - apart.flip(0)).abs() <= _SAME * size).all())
