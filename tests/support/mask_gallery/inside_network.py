"""Masks in what networks compute: gates, heads, ensembles, detectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mask_gallery.ground import Ground, PlantedMask, Yardstick, bare
from mask_gallery.parts import MeanOf, StraightThrough, jittered, one_hot, taken


class WinnersOnly(nn.Module):
    """Keeps the largest share of each sample's activations (k-WTA, Xiao et al., ICLR 2020)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).reshape(maps.shape)


class Winners(nn.Module):
    """The network with such a layer before its head; ``straight``: whose backward is the identity."""

    def __init__(self, ground: Ground, straight: bool = False, share: float = 0.2) -> None:
        super().__init__()
        self.network = ground.network
        winners = WinnersOnly(share)
        self.winners = StraightThrough(winners) if straight else winners

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.network.forward_features(inputs)
        return self.network.forward_head(self.winners(maps))


class DecoyGate(nn.Module):
    """The network's argmax decides; all that has a slope is a decoy that decides nothing."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        generator = torch.Generator().manual_seed(1)
        sample = ground.inputs[0]
        shape = (sample.numel(), int(ground.labels.max()) + 1)
        weight = torch.randn(shape, generator=generator) / sample.numel() ** 0.5
        self.register_buffer("decoy", weight)

    def forward(self, inputs: Tensor) -> Tensor:
        decoy = torch.tanh(inputs.flatten(1) @ self.decoy)
        logits = self.network(inputs)
        return decoy + 4 * one_hot(logits.argmax(dim=1), logits)


class ReverseAttention(nn.Module):
    """Features times the weight row of the predicted class, classified again (as ANCRA does)."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.network.forward_features(inputs)
        head = self.network.get_submodule(self.network.classifier)
        rows = head.weight[self.network.forward_head(maps).argmax(dim=1)]
        logits: Tensor = head(self.network.forward_head(maps, pre_logits=True) * rows)
        return logits


class NearestNeighbour(nn.Module):
    """The class of the training sample whose features are nearest; or, soft, by distances."""

    def __init__(self, ground: Ground, soft: bool = False) -> None:
        super().__init__()
        self.network = ground.network
        self.soft = soft
        self.classes = int(ground.labels.max()) + 1
        with torch.no_grad():
            self.register_buffer("known", self.features(ground.inputs))
        self.register_buffer("labels", ground.labels)

    def features(self, inputs: Tensor) -> Tensor:
        """(N, C) of length 1."""
        pooled = self.network.forward_head(self.network.forward_features(inputs), pre_logits=True)
        return nn.functional.normalize(pooled, dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        near = self.features(inputs) @ self.known.T
        if self.soft:
            own = [near[:, self.labels == k].amax(dim=1) for k in range(self.classes)]
            return 10 * torch.stack(own, dim=1)
        return one_hot(self.labels[near.argmax(dim=1)], near[:, : self.classes])


class Votes(nn.Module):
    """How many of five networks say each class."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.members = nn.ModuleList(_five(ground))

    def forward(self, inputs: Tensor) -> Tensor:
        said = [member(inputs) for member in self.members]
        return torch.stack([one_hot(z.argmax(dim=1), z) for z in said]).sum(dim=0)


def _five(ground: Ground) -> list[nn.Module]:
    return [jittered(ground.network, seed) for seed in range(5)]


class HashChosen(nn.Module):
    """The low bits of the pixels choose a network: one of four is the weak one."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.robust = ground.robust

    def forward(self, inputs: Tensor) -> Tensor:
        bits = (inputs.detach().flatten(1).double() * 2**20).round().long().sum(dim=1)
        return taken(bits % 4 == 3, self.network(inputs), self.robust(inputs))


class RandomMember(nn.Module):
    """At every pass each sample is answered by the weak network seven times of ten."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.robust = ground.robust

    def forward(self, inputs: Tensor) -> Tensor:
        weak = torch.rand(len(inputs), device=inputs.device) < 0.7
        return taken(weak, self.network(inputs), self.robust(inputs))


class GridDetector(nn.Module):
    """Off the grey levels of the data a robust network answers."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.robust = ground.robust
        self.levels = ground.levels

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = inputs.detach() * self.levels
        off = (scaled - scaled.round()).flatten(1).abs().amax(dim=1) > 1e-3
        return taken(off, self.robust(inputs), self.network(inputs))


class EntropyDetector(nn.Module):
    """Where the network is less sure than on 95 % of the training samples a robust one answers."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.robust = ground.robust
        with torch.no_grad():
            self.limit = float(self.entropy(self.network(ground.inputs)).quantile(0.95))

    def entropy(self, logits: Tensor) -> Tensor:
        """(N,), in nats."""
        logarithms = torch.log_softmax(logits, dim=1)
        return -(logarithms.exp() * logarithms).sum(dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.network(inputs)
        unsure = self.entropy(logits.detach()) > self.limit
        return taken(unsure, self.robust(inputs), logits)


class DistanceDetector(nn.Module):
    """Farther from the training samples than 99 % of them from each other a robust one answers."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.robust = ground.robust
        self.register_buffer("known", ground.inputs.flatten(1))
        with torch.no_grad():
            two = torch.cdist(self.known, self.known).topk(2, dim=1, largest=False).values
        self.limit = float(two[:, 1].quantile(0.99))

    def distance(self, inputs: Tensor) -> Tensor:
        """(N,), to the nearest training sample, in ℓ2."""
        return torch.cdist(inputs.flatten(1), self.known).amin(dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        far = self.distance(inputs.detach()) > self.limit
        return taken(far, self.robust(inputs), self.network(inputs))


class Memory(nn.Module):
    """What lies within twice ε of an input seen before is answered as that one was."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.reach = 2 * ground.eps
        self.seen: list[Tensor] = []
        self.said: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        flat = inputs.detach().flatten(1)
        if self.seen:
            seen, said = torch.cat(self.seen), torch.cat(self.said)
            gap, place = torch.cdist(flat, seen, p=torch.inf).min(dim=1)
            known = gap <= self.reach
            logits = taken(known, said[place], logits)
            flat, fresh = flat[~known], logits.detach()[~known]
        else:
            fresh = logits.detach()
        if len(flat) and len(self.seen) < 100:
            self.seen.append(flat.clone())
            self.said.append(fresh.clone())
        return logits


def _too_far(ground: Ground) -> Callable[[Tensor], Tensor]:
    """How far beyond the detector's limit inputs (N, C, H, W) are: (N,)."""
    detector = DistanceDetector(ground)
    return lambda inputs: 20 * torch.relu(detector.distance(inputs) - 0.999 * detector.limit)


def _on_grid(clean: Tensor, candidates: Tensor, ground: Ground) -> Tensor:
    """The grid's nearest points, inside the ball around clean inputs that lie on it."""
    steps = int(ground.eps * ground.levels + 1e-6)
    away = ((candidates - clean) * ground.levels).round().clamp(-steps, steps)
    return ((clean * ground.levels).round() + away).clamp(0, ground.levels) / ground.levels


def _other_bits(clean: Tensor, candidates: Tensor, ground: Ground) -> Tensor:
    """The same up to noise below what the network notices, so that the hash chooses anew."""
    moved = candidates + 1e-4 * torch.randn_like(candidates)
    return moved.clamp(clean - ground.eps, clean + ground.eps).clamp(0, 1)


_UNFAITHFUL = ("no_gradients", "flat_margin", "gradient_mismatch", "fidelity", "continuity")
_SWITCH = ("continuity", "stability", "transfer_beats_direct", "black_box_beats_gradients")

MASKS = (
    PlantedMask(
        "k-wta",
        Winners,
        ("fidelity", "gradient_mismatch"),
        Yardstick((Winners, lambda g: Winners(g, straight=True), bare)),
        costs=0.05,
    ),
    PlantedMask("decoy-gate", DecoyGate, _UNFAITHFUL),
    PlantedMask("reverse-attention", ReverseAttention, _UNFAITHFUL, costs=0.05),
    PlantedMask(
        "nearest-neighbour",
        NearestNeighbour,
        _UNFAITHFUL,
        Yardstick((lambda g: NearestNeighbour(g, soft=True),)),
    ),
    PlantedMask("votes", Votes, _UNFAITHFUL, Yardstick((lambda g: MeanOf(*_five(g)),)), costs=0.05),
    PlantedMask(
        "hash-chosen", HashChosen, _SWITCH, Yardstick(land=_other_bits), costs=0.05, branches=True
    ),
    PlantedMask(
        "random-member", RandomMember, ("randomised",), Yardstick(judged="majority"), branches=True
    ),
    PlantedMask("grid-detector", GridDetector, _SWITCH, Yardstick(land=_on_grid), branches=True),
    PlantedMask("entropy-detector", EntropyDetector, _SWITCH, branches=True),
    PlantedMask(
        "distance-detector", DistanceDetector, _SWITCH, Yardstick(penalty=_too_far), branches=True
    ),
    PlantedMask(
        "memory",
        Memory,
        ("history_dependent", "changing_state", "flat_margin", "fidelity"),
        Yardstick(judged="fresh"),
    ),
)
