"""``train``: from a job to a model's folder. Every recipe runs through this one loop."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench import seeding
from robench.datasets import Dataset
from robench.defenses.card import draft_card, write_model
from robench.defenses.inner_maximisers import ascend, cross_entropy_of, uniform_start
from robench.defenses.job import TrainingJob
from robench.defenses.precision import with_layout, with_precision
from robench.defenses.processes import Processes, deterministic, launch
from robench.defenses.progress import TrainingProgress
from robench.defenses.recipe import Context
from robench.defenses.settings import TrainingSettings
from robench.defenses.training_data import TrainingData
from robench.defenses.training_state import STATE_FILE, Best, TrainingState, Weights
from robench.errors import TrainingError, UsageError
from robench.files import ensure_writable
from robench.models.cards import CARD_NAME
from robench.probes import eval_mode
from robench.records import ModelCard
from robench.threat_models import ThreatModel

__all__ = ["train", "validate"]

_VALIDATION_BATCH = 500


def train(job: TrainingJob, *, overwrite: bool = False, progress: bool = True) -> Path:
    """Train a job's network and write its card and weights.

    The same job gives the same weights, bit for bit, on the same machine. A run that was
    interrupted, however abruptly, goes on after its last finished epoch when the same job is
    given again, and ends with the same weights.

    Args:
        job: from :func:`~robench.defenses.job.resolve`.
        overwrite: replace a finished or interrupted run in the folder.
        progress: show a progress bar on stderr.

    Returns:
        The path of ``card.toml``.

    Raises:
        UsageError: the folder holds a finished model, or an interrupted run of another job.
        TrainingError: the loss is not finite. The best weights so far are written, with a card
            that says so.
        StoreError: the folder cannot be written.
        MissingDependencyError: several devices need Lightning Fabric.
        DeviceError: there are fewer devices than the job's.
    """
    card = draft_card(job)
    path = job.folder / CARD_NAME
    if overwrite:
        # The card first: without it the folder is no model.
        path.unlink(missing_ok=True)
        TrainingState.clear(job.folder)
    elif path.exists() and not (job.folder / STATE_FILE).exists():
        raise UsageError(
            "the folder holds a finished model",
            where=job.folder,
            hint="Choose another folder with --out, or replace it with --overwrite",
        )
    ensure_writable(job.folder)
    launch(partial(_train, job, card, progress), job.device, job.devices)
    return path


def _train(job: TrainingJob, card: ModelCard, progress: bool, processes: Processes) -> None:
    """One process's part. Module-level, so that it can be sent to a spawned process."""
    title = f"{job.recipe.name} on {job.data.train.name}"
    shown = progress and processes.count == 1
    try:
        with (
            TrainingProgress(title, shown=shown) as bar,
            deterministic(processes.device, job.settings.threads),
        ):
            best = _Run(job, processes, bar).best()
    except TrainingError as error:
        state = TrainingState.load(job.folder, job.identity)
        if processes.index == 0 and state is not None and state.best is not None:
            # The last good weights stay usable, and their card says what happened.
            write_model(card, state.best, job.folder, note=f"Training stopped: {error.what}.")
        raise
    if processes.index == 0:
        write_model(card, best, job.folder)
        TrainingState.clear(job.folder)


class _Run:
    """A job under way in one process, from its start or from where it was interrupted."""

    def __init__(self, job: TrainingJob, processes: Processes, progress: TrainingProgress) -> None:
        settings, device = job.settings, processes.device
        self.job = job
        self.settings = settings
        self.processes = processes
        self.progress = progress
        # A copy, because spawned processes on a CPU share the memory of what they are sent.
        network = copy.deepcopy(job.network).to(device)
        self.network = with_layout(network, device, settings.precision)
        self.optimiser = _optimiser(self.network, settings)
        # Not torch's AveragedModel: its first update copies the weights, whatever the decay.
        self.average = copy.deepcopy(self.network) if settings.ema else None
        self.data = TrainingData(job.data.train, settings, seed=job.seed, device=device)
        self.context = Context(
            with_precision(self.network, device, settings.precision),
            job.threat_model,
            job.data.train.num_classes,
            self.data,
            self._teacher(),
        )
        self.state = TrainingState.load(job.folder, job.identity) or TrainingState(
            job.identity, 0, {}, {}
        )
        if self.state.epoch:
            self.network.load_state_dict(self.state.network)
            self.optimiser.load_state_dict(self.state.optimiser)
            if self.average is not None and self.state.average is not None:
                self.average.load_state_dict(self.state.average)

    def _teacher(self) -> nn.Module | None:
        if self.job.teacher is None:
            return None
        device, precision = self.processes.device, self.settings.precision
        # A loaded model wraps the bare network, whose features are wanted.
        bare = self.job.teacher.network.to(device).eval()
        return with_precision(with_layout(bare, device, precision), device, precision).eval()

    def best(self) -> Best:
        """The best weights by validation, once all epochs are done.

        Raises:
            TrainingError: the loss is not finite. The state of the last finished epoch, with the
                best weights so far, stays in the folder.
        """
        settings, state = self.settings, self.state
        self.progress.begin(settings.epochs, self.data.steps, state.epoch)
        while state.epoch < settings.epochs:
            row = {"epoch": state.epoch + 1.0, **self._epoch(state.epoch)}
            state.epoch += 1
            if state.epoch % settings.validate_every == 0 or state.epoch == settings.epochs:
                row |= self._validated()
            state.network = _weights(self.network)
            state.optimiser = self.optimiser.state_dict()
            state.average = None if self.average is None else _weights(self.average)
            state.history.append(row)
            if self.processes.index == 0:
                state.save(self.job.folder)
            self.progress.epoch_done(row)
        if state.best is None:
            raise TrainingError("no epoch was validated", where=self.job.folder)
        return state.best

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch; the mean of each of the loss's terms."""
        index, count = self.processes.index, self.processes.count
        threat = self.job.threat_model
        weaker = replace(threat, eps=threat.eps * self.settings.eps_share(epoch))
        context = replace(self.context, threat_model=weaker)
        sums: dict[str, Tensor] = {}
        context.network.train()
        # Keyed by epoch and process, so that a resumed run draws what an unbroken one draws.
        torch.manual_seed(seeding.tag(f"epoch {self.job.seed} {epoch} {index}"))
        for step, batch in enumerate(self.data.batches(epoch, index, count)):
            terms = self.job.recipe.terms(context, batch)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            if not torch.isfinite(loss.detach()):
                raise TrainingError(
                    f"the loss is {float(loss.detach())} at step {step + 1} of epoch {epoch + 1}",
                    where=self.job.folder,
                    hint="Lower lr, or set clip; the last good checkpoint is kept",
                )
            self._step(loss, done=epoch * self.data.steps + step)
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
            self.progress.step_done()
        self.processes.average_buffers(self.network)
        if self.average is not None:
            self.processes.average_buffers(self.average)
        return {f"loss_{name}": float(value) / self.data.steps for name, value in sums.items()}

    def _step(self, loss: Tensor, *, done: int) -> None:
        """One optimiser step down ``loss``, after ``done`` of them."""
        settings = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr_at(done / (self.data.steps * settings.epochs))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.processes.average_gradients(self.network)
        if settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimiser.step()
        if self.average is not None:
            _follow(self.average, self.network, min(settings.ema, (1 + done) / (10 + done)))

    def _validated(self) -> dict[str, float]:
        """Validation figures; the weights are kept if they are the best so far."""
        judged = self.network if self.average is None else self.average
        figures = validate(
            judged,
            self.job.data.validation,
            self.job.threat_model,
            seed=self.job.seed,
            steps=self.settings.validation_steps,
            device=self.processes.device,
        )
        best = self.state.best
        if best is None or self._worth(figures) > self._worth(best.figures):
            self.state.best = Best(self.state.epoch, _weights(judged), figures)
        return figures

    def _worth(self, figures: dict[str, float]) -> tuple[float, float]:
        selection = self.job.recipe.selection
        # Few validation samples tie often; the loss decides then.
        loss = "adv_loss" if selection == "robust_acc" else "clean_loss"
        return figures[selection], -figures[loss]


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

    Args:
        network: answers logits (N, C); its training flags stay as they are.
        dataset: what to judge it on.
        threat_model: the ball.
        seed: keys the attack's starts.
        steps: of the attack.
        device: where the network is.

    Returns:
        ``clean_acc`` and ``robust_acc`` in percent, ``clean_loss`` and ``adv_loss`` in nats. A
        sample counts as robust if it is classified correctly clean and under PGD.
    """
    keys = seeding.derive(seeding.sample_keys(seed, dataset.sample_ids), seeding.tag("validation"))
    sums = torch.zeros(4, dtype=torch.float64)
    with eval_mode(network):
        for start in range(0, len(dataset), _VALIDATION_BATCH):
            chosen = range(start, min(start + _VALIDATION_BATCH, len(dataset)))
            inputs = dataset.batch(chosen).to(device)
            labels = dataset.labels[start : chosen.stop].to(device)
            adv_inputs = ascend(
                cross_entropy_of(network, labels),
                inputs,
                uniform_start(inputs, threat_model, keys[start : chosen.stop].to(device)),
                threat_model,
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
    clean_acc, robust_acc, clean_loss, adv_loss = (sums / len(dataset)).tolist()
    return {
        "clean_acc": 100 * clean_acc,
        "robust_acc": 100 * robust_acc,
        "clean_loss": clean_loss,
        "adv_loss": adv_loss,
    }


def _optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    parameters, lr, decay = network.parameters(), settings.lr, settings.weight_decay
    if settings.optimiser == "adam":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    momentum = settings.momentum
    return torch.optim.SGD(
        parameters, lr=lr, weight_decay=decay, momentum=momentum, nesterov=momentum > 0
    )


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
