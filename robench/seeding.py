"""Random numbers that belong to a sample, not to a batch.

Every draw is a pure function of (seed, sample id, attack, restart, step, position). There is no
generator to advance, so a result cannot depend on batch size, order, sharding or resuming.

The function is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014): keys are chained through its 64-bit finaliser, and position ``j`` of a
draw hashes ``key + (j + 1)·γ``. Integers wrap around in int64 exactly alike on every device.
"""

import contextlib
import hashlib
import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # int64 shifts are arithmetic; the mask turns them into the logical ones SplitMix64 needs.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit integers: int64 → int64, elementwise."""
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def tag(text: str) -> int:
    """A 63-bit number for a name (an attack, a purpose), to be passed to :func:`derive`."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def sample_keys(seed: int, sample_ids: Sequence[str]) -> Tensor:
    """A key for each sample, int64 (N,) on the CPU, from the run's seed and N stable ids."""
    base = torch.tensor([tag(sample_id) for sample_id in sample_ids], dtype=torch.int64)
    return derive(base, seed)


def derive(keys: Tensor, *tags: int | Tensor) -> Tensor:
    """Keys for a narrower purpose, int64 (N,) → (N,): one step down for each tag.

    A tag is an integer, or int64 (N,) where the purpose differs by row.
    """
    for item in tags:
        keys = mix((keys + _GAMMA) ^ mix(torch.as_tensor(item, device=keys.device) + _GAMMA))
    return keys


def _bits(keys: Tensor, shape: Sequence[int]) -> Tensor:
    positions = torch.arange(1, math.prod(shape) + 1, device=keys.device) * _GAMMA
    return mix(keys[:, None] + positions).view(keys.shape[0], *shape)


def uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform draws in [0, 1): float32 (N, *shape) from keys (N,), multiples of 2⁻²⁴."""
    return _shift_right(_bits(keys, shape), 40).to(torch.float32) * 2.0**-24


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal draws (Box & Muller 1958): float32 (N, *shape) from keys (N,)."""
    radius = uniform(derive(keys, 1), shape)
    angle = uniform(derive(keys, 2), shape)
    # 1 − u is in (0, 1], so the logarithm is finite.
    return torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos((2.0 * math.pi) * angle)


def signs(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Fair ±1 draws: float32 (N, *shape) from keys (N,)."""
    return _shift_right(_bits(keys, shape), 63).to(torch.float32) * 2.0 - 1.0


def integers(keys: Tensor, high: int, shape: Sequence[int]) -> Tensor:
    """Uniform draws from 0 … max(high, 1) − 1: int64 (N, *shape) from keys (N,).

    ``high`` must be below 2²⁴; the bias of the multiplication is then below 2⁻²⁴·high.
    """
    return (_shift_right(_bits(keys, shape), 32) * max(high, 1)) >> 32


@contextlib.contextmanager
def own_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Generators of torch, NumPy and Python that begin at ``seed``, for code that draws from them.

    Afterwards they stand where they stood.
    """
    python, arrays = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        begin_stream(seed, device)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def begin_stream(seed: int, device: torch.device) -> None:
    """Have the generators of torch, NumPy and Python begin at ``seed``, 64 bits."""
    if device.type == "cpu":
        # Not torch.manual_seed: it notes the seed for each kind of device that is not in use
        # yet, with the stack, which takes longer than a small model's pass and is kept for good.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
