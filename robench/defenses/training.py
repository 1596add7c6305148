"""``train``: from a job to a model's folder. Every recipe runs through this one loop."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.nn import functional as F

from robench import seeding
from robench.datasets import Dataset
from robench.defenses.card import draft_card, write_model
from robench.defenses.computation import Processes, as_computed, deterministic, launch
from robench.defenses.inner_maximisers import ascend, cross_entropy_of, uniform_start
from robench.defenses.job import TrainingJob
from robench.defenses.recipe import Context
from robench.defenses.settings import TrainingSettings
from robench.defenses.training_data import TrainingData
from robench.defenses.training_state import STATE_FILE, Best, TrainingState, Weights
from robench.errors import TrainingError, UsageError
from robench.files import ensure_writable
from robench.formatting import number
from robench.models.zoo_folders import CARD_NAME
from robench.probes import eval_mode
from robench.records import ModelCard
from robench.threat_models import ThreatModel

_VALIDATION_BATCH = 500


def train(job: TrainingJob, *, overwrite: bool = False, progress: bool = True) -> Path:
    """Train a job's network and write its card and weights.

    The same job gives the same weights, bit for bit, on the same machine. A run that was
    interrupted, however abruptly, goes on after its last finished epoch when the same job is
    given again, and ends with the same weights.

    Args:
        job: from :func:`~robench.defenses.job.resolve`.
        overwrite: replace a finished or interrupted run in the folder.
        progress: show a bar on stderr.

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
    writes = processes.index == 0
    with deterministic(processes.device, job.settings.threads):
        run = _Run(job, processes)
        state = run.state
        bar = TrainingProgress(
            f"{job.recipe.name} on {job.data.train.name}",
            steps=job.settings.epochs * run.data.steps,
            done=state.epoch * run.data.steps,
            console=Console(stderr=True),
            disable=not progress or processes.count > 1,
        )
        try:
            with bar:
                run.finish(bar)
        except TrainingError as error:
            if writes and state.best is not None:
                # The last good weights stay usable, and their card says what happened.
                write_model(card, state.best, job.folder, note=f"Training stopped: {error.what}.")
            raise
    if writes and state.best is not None:
        write_model(card, state.best, job.folder)
        TrainingState.clear(job.folder)


class TrainingProgress(Progress):
    """A run's progress bar: rate, time left, losses, validation robustness. A context manager.

    Args:
        title: what is being trained.
        steps, done: of the whole run, and how many of them are behind it.
        options: where and whether to draw, as Rich's ``Progress`` takes them.
    """

    def __init__(self, title: str, *, steps: int, done: int, **options: Any) -> None:
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            **options,
        )
        self._run = self.add_task(title, total=steps, completed=done, figures="")

    def step_done(self) -> None:
        """One optimiser step is done."""
        self.advance(self._run)

    def epoch_done(self, epoch: int, figures: dict[str, float]) -> None:
        """So many epochs are done, the last with these figures."""
        shown = [f"epoch {epoch}"]
        shown += [f"{k[5:]} {v:.3f}" for k, v in figures.items() if k.startswith("loss_")]
        for label in ("clean", "robust"):
            if f"{label}_acc" in figures:
                shown.append(f"{label} {number(figures[f'{label}_acc'])} %")
        self.update(self._run, figures=" · ".join(shown))


class _Run:
    """A job under way in one process, from its start or from where it was interrupted."""

    def __init__(self, job: TrainingJob, processes: Processes) -> None:
        settings, device = job.settings, processes.device
        self.job = job
        self.settings = settings
        self.processes = processes
        # A copy, because spawned processes on a CPU share the memory of what they are sent.
        self.network = copy.deepcopy(job.network).to(device)
        computed = as_computed(self.network, device, settings.precision)
        self.optimiser = _optimiser(self.network, settings)
        # Not torch's AveragedModel: its first update copies the weights, whatever the decay.
        self.average = copy.deepcopy(self.network) if settings.ema else None
        self.data = TrainingData(job.data.train, settings, seed=job.seed, device=device)
        teacher = None
        if job.teacher is not None:
            # A loaded model wraps the bare network, whose features are wanted.
            bare = job.teacher.network.to(device)
            teacher = as_computed(bare, device, settings.precision).eval()
        self.context = Context(
            computed, job.threat_model, job.data.train.num_classes, self.data, teacher
        )
        self.state = TrainingState.load(job.folder, job.identity) or TrainingState(job.identity)
        if self.state.epoch:
            self.network.load_state_dict(self.state.network)
            self.optimiser.load_state_dict(self.state.optimiser)
            if self.average is not None and self.state.average is not None:
                self.average.load_state_dict(self.state.average)

    def finish(self, progress: TrainingProgress) -> None:
        """Train the epochs that are left; the state, with the best weights, is saved after each.

        Raises:
            TrainingError: the loss is not finite. The state of the last finished epoch, with the
                best weights so far, stays in the folder.
        """
        settings, state = self.settings, self.state
        while state.epoch < settings.epochs:
            figures = self._epoch(state.epoch, progress)
            state.epoch += 1
            if state.epoch % settings.validate_every == 0 or state.epoch == settings.epochs:
                figures |= self._validated()
            state.network = _weights(self.network)
            state.optimiser = self.optimiser.state_dict()
            state.average = None if self.average is None else _weights(self.average)
            if self.processes.index == 0:
                state.save(self.job.folder)
            progress.epoch_done(state.epoch, figures)

    def _epoch(self, epoch: int, progress: TrainingProgress) -> dict[str, float]:
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
            progress.step_done()
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
    """Clean and PGD figures of a network on ``device``, in fp32 and evaluation mode.

    ``seed`` keys the starts of the attack, which makes so many ``steps``. The network's training
    flags stay as they are.

    Returns:
        ``clean_acc`` and ``robust_acc`` in percent, ``clean_loss`` and ``adv_loss`` in nats. A
        sample counts as robust if it is classified correctly clean and under PGD.
    """
    keys = seeding.derive(seeding.sample_keys(seed, dataset.sample_ids), seeding.tag("validation"))
    sums = torch.zeros(4, dtype=torch.float64)
    with eval_mode(network):
        for rows in torch.split(torch.arange(len(dataset)), _VALIDATION_BATCH):
            inputs, labels = dataset.batch(rows).to(device), dataset.labels[rows].to(device)
            adv_inputs = ascend(
                cross_entropy_of(network, labels),
                inputs,
                uniform_start(inputs, threat_model, keys[rows].to(device)),
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
    accs = {"clean_acc": 100 * clean_acc, "robust_acc": 100 * robust_acc}
    return accs | {"clean_loss": clean_loss, "adv_loss": adv_loss}


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
