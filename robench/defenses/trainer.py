"""The training loop: every recipe runs through this one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench import seeding
from robench.datasets import Dataset
from robench.defenses.engine import (
    Engine,
    average_buffers,
    average_gradients,
    deterministic,
)
from robench.defenses.inner_maximisers import pgd
from robench.defenses.precision import arranged, computing
from robench.defenses.progress import TrainingProgress
from robench.defenses.recipe import Context, Recipe
from robench.defenses.settings import TrainingSettings
from robench.defenses.training_data import TrainingData
from robench.defenses.training_state import Best, TrainingState, Weights
from robench.errors import TrainingError
from robench.threat_models import ThreatModel

__all__ = ["Trainer", "validate"]

_VALIDATION_BATCH = 500


@dataclass
class Trainer:
    """One run of one recipe.

    Args:
        recipe: the loss.
        settings: optimiser, schedule, augmentation.
        threat_model: what to train against.
        network: with its initial weights, on the CPU.
        train_data, validation_data: disjoint parts of the training data.
        seed: keys every random choice.
        folder: where the state of an interrupted run is kept.
        identity: all settings as text; guards resuming.
        teacher: fixed network, where the recipe needs one.
        progress: shows what happens.
    """

    recipe: Recipe
    settings: TrainingSettings
    threat_model: ThreatModel
    network: nn.Module
    train_data: Dataset
    validation_data: Dataset
    seed: int
    folder: Path
    identity: dict[str, str]
    teacher: nn.Module | None = None
    progress: TrainingProgress | None = None

    def fit(self, engine: Engine) -> Best:
        """Train, or go on training, and return the best weights by validation.

        Raises:
            TrainingError: the loss is not finite. The state of the last finished epoch, with the
                best weights so far, stays in the folder.
        """
        with deterministic(engine.device, self.settings.threads):
            return self._fit(engine)

    def _fit(self, engine: Engine) -> Best:
        settings, device = self.settings, engine.device
        # A copy, because spawned processes on a CPU share the memory of what they are sent.
        network = copy.deepcopy(self.network).to(device)
        network = arranged(network, device, settings.precision)
        optimiser = _optimiser(network, settings)
        average = copy.deepcopy(network) if settings.ema else None
        data = TrainingData(self.train_data, settings, seed=self.seed, device=device)
        teacher = None if self.teacher is None else self._prepared_teacher(self.teacher, device)
        lowered = computing(network, device, settings.precision)
        context = Context(lowered, self.threat_model, self.train_data.num_classes, data, teacher)
        state = TrainingState.load(self.folder, self.identity) or TrainingState(
            self.identity, 0, {}, {}
        )
        if state.epoch:
            network.load_state_dict(state.network)
            optimiser.load_state_dict(state.optimiser)
            if average is not None and state.average is not None:
                average.load_state_dict(state.average)
        report = self.progress if engine.rank == 0 else None
        if report is not None:
            report.start(settings.epochs, data.steps, state.epoch)
        for epoch in range(state.epoch, settings.epochs):
            terms = self._epoch(engine, network, context, optimiser, average, epoch, report)
            row = {"epoch": float(epoch + 1), **terms}
            if (epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs:
                judged = network if average is None else average
                figures = validate(
                    judged,
                    self.validation_data,
                    self.threat_model,
                    seed=self.seed,
                    steps=settings.validation_steps,
                    device=device,
                )
                row |= figures
                if state.best is None or self._rank(figures) > self._rank(state.best.figures):
                    state.best = Best(epoch + 1, _weights(judged), figures)
            state.epoch = epoch + 1
            state.network = _weights(network)
            state.optimiser = optimiser.state_dict()
            state.average = None if average is None else _weights(average)
            state.history.append(row)
            if engine.rank == 0:
                state.save(self.folder)
            if report is not None:
                report.epoch(row)
        if state.best is None:
            raise TrainingError("no epoch was validated", where=self.folder)
        return state.best

    def _prepared_teacher(self, teacher: nn.Module, device: torch.device) -> nn.Module:
        # A loaded model wraps the bare network, whose features are wanted.
        bare: nn.Module = getattr(teacher, "network", teacher).to(device).eval()
        precision = self.settings.precision
        return computing(arranged(bare, device, precision), device, precision).eval()

    def _epoch(
        self,
        engine: Engine,
        network: nn.Module,
        context: Context,
        optimiser: torch.optim.Optimizer,
        average: nn.Module | None,
        epoch: int,
        report: TrainingProgress | None,
    ) -> dict[str, float]:
        steps = context.data.steps
        share = self.settings.eps_share(epoch)
        weaker = replace(self.threat_model, eps=self.threat_model.eps * share)
        context = replace(context, threat_model=weaker)
        total = steps * self.settings.epochs
        sums: dict[str, Tensor] = {}
        context.network.train()
        # Keyed by epoch and process, so that a resumed run draws what an unbroken one draws.
        torch.manual_seed(seeding.tag(f"epoch {self.seed} {epoch} {engine.rank}"))
        for step, batch in enumerate(context.data.batches(epoch, engine.rank, engine.world_size)):
            done = epoch * steps + step
            for group in optimiser.param_groups:
                group["lr"] = self.settings.lr_at(done / total)
            terms = self.recipe.terms(context, batch)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            if not torch.isfinite(loss.detach()):
                raise TrainingError(
                    f"the loss is {float(loss.detach())} at step {step + 1} of epoch {epoch + 1}",
                    where=self.folder,
                    hint="Lower lr, or set clip; the last good checkpoint is kept",
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            average_gradients(engine, network)
            if self.settings.clip:
                nn.utils.clip_grad_norm_(network.parameters(), self.settings.clip)
            optimiser.step()
            if average is not None:
                _follow(average, network, min(self.settings.ema, (1 + done) / (10 + done)))
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
            if report is not None:
                report.step()
        average_buffers(engine, network)
        if average is not None:
            average_buffers(engine, average)
        return {f"loss_{name}": float(value) / steps for name, value in sums.items()}

    def _rank(self, figures: dict[str, float]) -> tuple[float, float]:
        # Few validation samples tie often; the loss decides then.
        loss = "adv_loss" if self.recipe.selection == "robust_acc" else "clean_loss"
        return figures[self.recipe.selection], -figures[loss]


def validate(
    network: nn.Module,
    dataset: Dataset,
    threat_model: ThreatModel,
    *,
    seed: int,
    steps: int,
    device: torch.device,
) -> dict[str, float]:
    """Clean and PGD figures, in fp32 and evaluation mode.

    Returns:
        ``clean_acc`` and ``robust_acc`` in percent, ``clean_loss`` and ``adv_loss`` in nats. A
        sample counts as robust if it is classified correctly clean and under PGD.
    """
    keys = seeding.derive(seeding.sample_keys(seed, dataset.sample_ids), seeding.tag("validation"))
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    try:
        for start in range(0, len(dataset), _VALIDATION_BATCH):
            chosen = range(start, min(start + _VALIDATION_BATCH, len(dataset)))
            inputs = dataset.batch(chosen).to(device)
            labels = dataset.labels[start : chosen.stop].to(device)
            adv_inputs = pgd(
                network,
                inputs,
                labels,
                threat_model,
                keys[start : chosen.stop].to(device),
                steps=steps,
                step_size=0.25 if steps >= 8 else 2 / steps,
            )
            with torch.no_grad():
                clean, adv = network(inputs), network(adv_inputs)
            right = clean.argmax(1) == labels
            sums += torch.stack(
                [
                    right.sum(),
                    (right & (adv.argmax(1) == labels)).sum(),
                    F.cross_entropy(clean, labels, reduction="sum"),
                    F.cross_entropy(adv, labels, reduction="sum"),
                ]
            ).cpu()
    finally:
        for module, training in flags:
            module.training = training
    clean_acc, robust_acc, clean_loss, adv_loss = (sums / len(dataset)).tolist()
    return {
        "clean_acc": 100 * clean_acc,
        "robust_acc": 100 * robust_acc,
        "clean_loss": clean_loss,
        "adv_loss": adv_loss,
    }


def _optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    build: Callable[..., torch.optim.Optimizer] = (
        torch.optim.SGD if settings.optimiser == "sgd" else torch.optim.AdamW
    )
    extra = (
        {"momentum": settings.momentum, "nesterov": settings.momentum > 0}
        if settings.optimiser == "sgd"
        else {}
    )
    return build(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, **extra)


def _weights(network: nn.Module) -> Weights:
    # Cloned: the network goes on changing.
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in network.state_dict().items()
    }


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the moving average, batch statistics included, towards the network."""
    for mean, value in zip(
        average.state_dict().values(), network.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
