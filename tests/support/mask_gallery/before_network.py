"""Masks that change inputs before the network sees them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mask_gallery.ground import Ground, PlantedMask, Yardstick
from mask_gallery.parts import Averaged, Straight, before, straightened


class Quantise(nn.Module):
    """Rounds to some levels; its slope is zero."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.steps = levels - 1

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs * self.steps).round() / self.steps


class Softened(nn.Module):
    """A slope where two levels have a step."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sigmoid(12 * (inputs - 0.5))


class IntegerCast(nn.Module):
    """Bytes, as image files hold them."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs * 255).to(torch.uint8).to(inputs.dtype) / 255


class Thermometer(nn.Module):
    """A code of so many bits a pixel (Buckman et al., ICLR 2018), read back before the network."""

    def __init__(self, network: nn.Module, bits: int = 10) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("levels", (torch.arange(bits) + 0.5) / bits)

    def code(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W, bits) of 0 and 1."""
        return (inputs[..., None] >= self.levels).to(inputs.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(self.code(inputs).mean(dim=-1))
        return logits


class CosineQuantise(nn.Module):
    """Rounds the cosine coefficients of blocks of 8×8 pixels, as JPEG does."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step
        place = torch.arange(8, dtype=torch.float32)
        waves = torch.cos(math.pi * (place[None] + 0.5) * place[:, None] / 8) / 2
        waves[0] /= math.sqrt(2)
        self.register_buffer("waves", waves)

    def forward(self, inputs: Tensor) -> Tensor:
        n, channels, height, width = inputs.shape
        blocks = inputs.reshape(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
        coefficients = self.waves @ blocks @ self.waves.T
        rounded = (coefficients / self.step).round() * self.step
        pixels = (self.waves.T @ rounded @ self.waves).transpose(3, 4)
        return pixels.reshape(inputs.shape).clamp(0, 1)


class Median(nn.Module):
    """Halfway to the median of a pixel and its neighbours to both sides; no gradient passes."""

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        wide = nn.functional.pad(inputs, (1, 1, 0, 0), mode="replicate")
        beside = torch.stack((wide[..., :-2], inputs, wide[..., 2:]))
        return (inputs + beside.median(dim=0).values) / 2


class TotalVariation(nn.Module):
    """Some steps down the total variation, near the input; no gradient passes."""

    def __init__(self, weight: float = 0.03, steps: int = 5) -> None:
        super().__init__()
        self.weight = weight
        self.steps = steps

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        smooth = inputs.clone()
        for _ in range(self.steps):
            for dim in (2, 3):
                slope = torch.sign(smooth.diff(dim=dim))
                first = smooth.narrow(dim, 0, smooth.shape[dim] - 1)
                first += self.weight / self.steps * slope
                second = smooth.narrow(dim, 1, smooth.shape[dim] - 1)
                second -= self.weight / self.steps * slope
        return smooth


class Noise(nn.Module):
    """Normal noise at every pass."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.deviation * torch.randn_like(inputs)


class ResizeAndCrop(nn.Module):
    """Enlarges by up to a quarter and cuts a random window of that (Xie et al., ICLR 2018)."""

    def forward(self, inputs: Tensor) -> Tensor:
        side = inputs.shape[-1]
        larger = side + int(torch.randint(0, side // 4, ()))
        wide = nn.functional.interpolate(inputs, (larger, larger), mode="bilinear")
        row, column = (int(torch.randint(0, larger - side + 1, ())) for _ in range(2))
        return wide[..., row : row + side, column : column + side]


class ThroughNumpy(nn.Module):
    """Leaves torch and comes back."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        array = inputs.detach().cpu().numpy().clip(0, 1)
        logits: Tensor = self.network(torch.from_numpy(array).to(inputs))
        return logits


class Detached(nn.Module):
    """Cuts the gradient off, in forward itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs.detach())
        return logits


class RefusesGradients(Detached):
    """Raises where a gradient is wanted."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.requires_grad:
            raise RuntimeError("this model is for inference only")
        return super().forward(inputs)


class Reversed(nn.Module):
    """The identity, with a gradient that points the wrong way."""

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = Straight.apply(inputs, torch.clone, torch.neg)
        return out


class Scrambled(nn.Module):
    """The identity, with the gradient's pixels in another order."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        pixels = ground.inputs[0].numel()
        order = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
        self.register_buffer("order", order)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = Straight.apply(inputs, torch.clone, self.scramble)
        return out

    def scramble(self, gradient: Tensor) -> Tensor:
        """(N, C, H, W), its pixels reordered."""
        return gradient.flatten(1)[:, self.order].reshape(gradient.shape)


class Sines(nn.Module):
    """A ripple too fine to matter, whose slope drowns the rest."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + 0.005 * torch.sin(inputs * 20_000)


def _quantise(ground: Ground) -> nn.Module:
    """Levels farther apart than ε."""
    return Quantise(1 + max(1, round(0.8 / ground.eps)))


def _thermometer(ground: Ground, network: nn.Module) -> nn.Module:
    """Bits ε/2 apart."""
    return Thermometer(network, round(2 / ground.eps))


def _jpeg(ground: Ground) -> nn.Module:
    return CosineQuantise(1.25 * ground.eps)


def _noise(ground: Ground) -> nn.Module:
    return Noise(ground.eps / 2)


def _random(make: Callable[[Ground], nn.Module]) -> Yardstick:
    return Yardstick((lambda g: Averaged(before(make)(g)),), judged="majority")


_FLAT = ("no_gradients", "flat_margin", "gradient_mismatch", "fidelity", "continuity")

MASKS = (
    PlantedMask(
        "quantised",
        before(_quantise),
        _FLAT,
        Yardstick((straightened(_quantise),)),
        costs=0.05,
    ),
    PlantedMask(
        "two-levels",
        before(lambda g: Quantise(2)),
        _FLAT,
        Yardstick((straightened(lambda g: Quantise(2)), before(lambda g: Softened()))),
        costs=0.1,
    ),
    PlantedMask("integer-cast", before(lambda g: IntegerCast()), _FLAT),
    PlantedMask(
        "thermometer",
        lambda g: _thermometer(g, g.network),
        _FLAT,
        Yardstick((straightened(lambda g: _thermometer(g, nn.Identity())),)),
    ),
    PlantedMask(
        "jpeg",
        before(_jpeg),
        _FLAT,
        Yardstick((straightened(_jpeg),)),
        costs=0.05,
    ),
    PlantedMask(
        "median",
        before(lambda g: Median()),
        _FLAT,
        Yardstick((straightened(lambda g: Median()),)),
        costs=0.05,
    ),
    PlantedMask(
        "total-variation",
        before(lambda g: TotalVariation()),
        _FLAT,
        Yardstick((straightened(lambda g: TotalVariation()),)),
        costs=0.05,
    ),
    PlantedMask("noise", before(_noise), ("randomised",), _random(_noise)),
    PlantedMask(
        "resize-and-crop",
        before(lambda g: ResizeAndCrop()),
        ("randomised",),
        _random(lambda g: ResizeAndCrop()),
        costs=0.1,
    ),
    PlantedMask("detached", lambda g: Detached(g.network), _FLAT),
    PlantedMask("through-numpy", lambda g: ThroughNumpy(g.network), _FLAT),
    PlantedMask(
        "refuses-gradients", lambda g: RefusesGradients(g.network), (*_FLAT, "errored_samples")
    ),
    PlantedMask(
        "reversed-gradient", before(lambda g: Reversed()), ("gradient_mismatch", "fidelity")
    ),
    PlantedMask("scrambled-gradient", before(Scrambled), ("gradient_mismatch", "fidelity")),
    PlantedMask("sines", before(lambda g: Sines()), ("gradient_mismatch", "fidelity")),
)
