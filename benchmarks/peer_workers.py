"""One measurement in a process of its own: ``peers.py`` starts this file, it prints one JSON line.

Each peer attacks the same model and samples; its proposals are judged by robench's adjudicator,
so that all accuracies mean the same. Imports, loading and judging are not timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from roofline import bare_passes
from shallow_networks import load_shallow
from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel
from robench.attacks.adapters import limit_targets
from robench.attacks.losses import LOSSES, Loss
from robench.attacks.suites import load_suite
from robench.datasets import ArrayDataset, Dataset, load_dataset
from robench.devices import synchronise
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.cascade import Cascade
from robench.evaluation.prepared_model import Settings, prepare_model
from robench.models import build_architecture, load_model, wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import ArchitectureSpec, AttackSpec
from robench.threat_models import ThreatModel

_PGD_STEPS, _PGD_STEP_SIZE = 20, 0.25
"""The latter as a share of ε"""
_FEW_TARGETED = {"steps": 12, "targets": 3}
_SHORTENED: dict[str, dict[str, dict[str, int]]] = {
    "aa-short": {
        "apgd-ce": {"steps": 4},
        "apgd-t": _FEW_TARGETED,
        "fab-t": _FEW_TARGETED,
        "square": {"queries": 200},
    },
    "ce-square-short": {"apgd-ce": {"steps": 5}, "square": {"queries": 250}},
}
"""For networks on which the whole would take hours: the attacks of AutoAttack that run, and their
budgets. ``aa-short``: all four and a twenty-fifth, so that gradients and forward passes stand to
each other as they do in the whole; ``ce-square-short``: a twentieth of the two untargeted ones."""


@dataclass
class Job:
    """What every peer is given."""

    model: RobenchModel
    dataset: Dataset
    inputs: Tensor
    labels: Tensor
    threat_model: ThreatModel
    task: str
    seed: int
    device: torch.device
    batch_size: int

    @property
    def eps(self) -> float:
        return self.threat_model.radius


class AffineLogits(nn.Module):
    """Another model's logits, multiplied and shifted: it classifies alike."""

    def __init__(self, model: nn.Module, scale: float, offset: float) -> None:
        super().__init__()
        self.model = model
        self.scale, self.offset = scale, offset

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K)."""
        logits: Tensor = self.model(inputs)
        return logits * self.scale + self.offset


class Stopwatch:
    """Seconds by the clock, and of processors: this process's and its ended children's."""

    def __init__(self) -> None:
        self._started = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        synchronise()
        children = os.times()
        processors = time.process_time() + children.children_user + children.children_system
        return time.perf_counter(), processors

    def read(self) -> dict[str, float]:
        """Both, since the start; what others take from a shared machine is in the first alone."""
        names = ("seconds", "processor_seconds")
        return {n: b - a for n, a, b in zip(names, self._started, self._now(), strict=True)}


Result = tuple[Tensor, dict[str, float], dict[str, Any]]
"""Proposed inputs (n, C, H, W), what a :class:`Stopwatch` shows, further figures"""


def robench(job: Job, precision: str) -> Result:
    """The task as ``robench run`` does it: clean pass, choice of precision, cascade."""
    spec = specification(job)
    settings = Settings(seed=job.seed, device=job.device, precision=precision)
    watch = Stopwatch()
    clean = prepare_model(job.model, job.dataset, job.threat_model, settings, [spec])
    choosing = watch.read()["seconds"]
    if (
        job.task == "pgd-20"
    ):  # the peers' is a bare attack; their AutoAttack has a clean pass and checks
        watch = Stopwatch()
    cascade = Cascade(spec, clean)
    attacked = cascade.run(torch.zeros(len(clean), *job.dataset.input_shape))
    seconds = watch.read()
    proposed = job.inputs.clone()
    found = attacked.adv_inputs[torch.arange(len(clean))]
    proposed[clean.rows.to(job.device)] = found.to(job.device)
    forwards, backwards = int(attacked.forwards.sum()), int(attacked.backwards.sum())
    alive = attacked.survivors()
    figures = {
        "precision": clean.models.search.description,
        "choosing": round(choosing, 3),
        "forwards": forwards,
        "backwards": backwards,
        "forwards_per_survivor": float(attacked.forwards[alive].double().mean()),
        "backwards_per_survivor": float(attacked.backwards[alive].double().mean()),
        "stages": [
            {
                "name": f"{s.name}{f' in {s.search}' if s.search else ''}",
                "attempted": s.attempted,
                "broken": s.broken,
                "seconds": round(s.seconds, 2),
                "passes": s.forwards + s.backwards,
            }
            for s in attacked.stages
        ],
        "workers": cascade.workers,
        "flags": [flag.name for flag in clean.flags],
        "share": bare_passes(job.inputs, job.labels, clean, cascade, attacked.stages)
        / seconds["processor_seconds" if job.device.type == "cpu" else "seconds"],
        "audit": attacked.audit.model_dump() if attacked.audit else None,
    }
    return proposed, seconds, figures


def bare_loop(job: Job) -> Result:
    """Twenty forward and backward passes and the steps between them, nothing else."""
    model, labels = job.model, job.labels
    low, high = (job.inputs - job.eps).clamp(0, 1), (job.inputs + job.eps).clamp(0, 1)
    watch = Stopwatch()
    points = job.inputs + job.eps * (2 * torch.rand_like(job.inputs) - 1)
    points = points.clamp(0, 1)
    for _ in range(_PGD_STEPS):
        points.requires_grad_()
        loss = nn.functional.cross_entropy(model(points), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        ahead = points.detach() + _PGD_STEP_SIZE * job.eps * gradient.sign()
        points = torch.minimum(torch.maximum(ahead, low), high)
    return points, watch.read(), {}


def art(job: Job) -> Result:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model=job.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(job.inputs.shape[1:]),
        nb_classes=job.model.num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if job.device.type == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        norm="inf" if job.threat_model.norm == "Linf" else 2,
        eps=job.eps,
        eps_step=_PGD_STEP_SIZE * job.eps,
        max_iter=_PGD_STEPS,
        num_random_init=1,
        batch_size=job.batch_size,
        verbose=False,
    )
    inputs, labels = job.inputs.cpu().numpy(), job.labels.cpu().numpy()
    watch = Stopwatch()
    proposed = attack.generate(x=inputs, y=labels)
    return torch.as_tensor(proposed, device=job.device), watch.read(), {}


def torchattacks(job: Job) -> Result:
    from torchattacks import PGD

    attack = PGD(
        job.model,
        eps=job.eps,
        alpha=_PGD_STEP_SIZE * job.eps,
        steps=_PGD_STEPS,
        random_start=True,
    )
    watch = Stopwatch()
    parts = [
        attack(x, y)
        for x, y in zip(
            torch.split(job.inputs, job.batch_size),
            torch.split(job.labels, job.batch_size),
            strict=True,
        )
    ]
    return torch.cat(parts), watch.read(), {}


def foolbox(job: Job) -> Result:
    from foolbox.attacks import LinfPGD
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(job.model, bounds=(0, 1), device=job.device)
    attack = LinfPGD(rel_stepsize=_PGD_STEP_SIZE, steps=_PGD_STEPS)
    watch = Stopwatch()
    parts = [
        attack(model, x, y, epsilons=job.eps)[1]
        for x, y in zip(
            torch.split(job.inputs, job.batch_size),
            torch.split(job.labels, job.batch_size),
            strict=True,
        )
    ]
    return torch.cat(parts), watch.read(), {}


def pyautoattack(job: Job) -> Result:
    """As users run it: float32, batches of 250."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    reference = AutoAttack(
        job.model,
        norm=job.threat_model.norm,
        eps=job.eps,
        seed=job.seed,
        device=job.device,
        version="standard",
    )
    limit_targets(reference, job.model.num_classes)
    if job.task in _SHORTENED:
        _shorten(reference, _SHORTENED[job.task])
    watch = Stopwatch()
    proposed, _ = reference.run_standard_evaluation(job.inputs, job.labels, batch_size=250)
    return proposed, watch.read(), {}


def _shorten(reference: Any, budgets: dict[str, dict[str, int]]) -> None:
    """Give pyautoattack the budgets of a shortened task."""
    reference.attacks_to_run = list(budgets)
    attacks = {
        "apgd-ce": reference.apgd,
        "apgd-t": reference.apgd_targeted,
        "fab-t": reference.fab,
        "square": reference.square,
    }
    for name, budget in budgets.items():
        attack = attacks[name]
        if "steps" in budget:
            attack.n_iter = attack.n_iter_orig = budget["steps"]
        if "targets" in budget:
            attack.n_target_classes = budget["targets"]
        if "queries" in budget:
            attack.n_queries = budget["queries"]


PEERS: dict[str, Callable[[Job], Result]] = {
    "robench": lambda job: robench(job, "auto"),
    "robench fp32": lambda job: robench(job, "fp32"),
    "robench aa-standard": lambda job: robench(replace(job, task="aa-standard"), "auto"),
    "robench aa-core": lambda job: robench(replace(job, task="aa-core"), "auto"),
    "bare loop": bare_loop,
    "ART": art,
    "torchattacks": torchattacks,
    "Foolbox": foolbox,
    "pyautoattack": pyautoattack,
}


def specification(job: Job) -> AttackSpec:
    """What robench runs for the task."""
    if job.task == "pgd-20":
        params = {"steps": _PGD_STEPS, "relative_step_size": _PGD_STEP_SIZE}
        return AttackSpec(name="pgd-20", attack="pgd", params=params)
    if job.task in _SHORTENED:
        budgets = _SHORTENED[job.task]
        (whole,) = load_suite("aa-standard").for_norm(job.threat_model.norm)
        stages = tuple(
            stage.model_copy(update={"params": {**stage.params, **budgets[stage.name]}})
            for stage in whole.stages
            if stage.name in budgets
        )
        return whole.model_copy(update={"name": job.task, "stages": stages})
    (spec,) = load_suite(job.task).for_norm(job.threat_model.norm)
    return spec


def job_for(
    task: str,
    model_name: str,
    *,
    dataset: str | None = None,
    n: int = 500,
    norm: str = "Linf",
    eps: str = "0.2",
    seed: int = 0,
    device: str = "cpu",
    logits: tuple[float, float] = (1.0, 0.0),
) -> Job:
    """Load what a measurement needs; ``random:ARCH`` has random weights and data.

    ``shallow:SHAPE`` is a network of ``shallow_networks.py``.
    The model's ``logits`` are multiplied by the first number, then the second is added.
    """
    place = torch.device(device)
    if model_name.startswith("random:"):
        # Random weights and data: for speed at a size that no committed checkpoint has.
        torch.manual_seed(0)
        network = build_architecture(ArchitectureSpec(name=model_name[7:]), 10, 3).eval()
        inputs = torch.rand(n, 3, 32, 32)
        with torch.no_grad():
            labels = torch.cat([network(x).argmax(dim=1) for x in torch.split(inputs, 100)])
        data: Dataset = ArrayDataset(inputs, labels, name="random", num_classes=10)
        model = wrap_module(network, num_classes=10, name=model_name, dataset="random")
    elif model_name.startswith("shallow:"):
        model, data = load_shallow(model_name[8:], n)
    else:
        model = load_model(model_name)
        data = load_dataset(dataset or model.summary.dataset).subset(n)
    if logits != (1.0, 0.0):
        classes, name = model.num_classes, model.summary.name
        affine = AffineLogits(model, *logits)
        model = wrap_module(affine, num_classes=classes, name=name, dataset=data.name)
    torch.manual_seed(seed)
    everything = range(len(data))
    return Job(
        model=model.to(place),
        dataset=data,
        inputs=data.batch(everything).to(place),
        labels=data.labels.to(place),
        threat_model=ThreatModel.of(norm, eps),
        task=task,
        seed=seed,
        device=place,
        batch_size=min(500, n),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("task")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default="0.2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--logits", nargs=2, type=float, default=(1.0, 0.0))
    arguments = parser.parse_args()
    job = job_for(
        arguments.task,
        arguments.model,
        dataset=arguments.dataset,
        n=arguments.n,
        norm=arguments.norm,
        eps=arguments.eps,
        seed=arguments.seed,
        device=arguments.device,
        logits=(arguments.logits[0], arguments.logits[1]),
    )
    adjudicator = Adjudicator(job.model, job.threat_model)
    # The first passes of a process are slower, and make torch import more of itself.
    adjudicator.logits(job.inputs)
    SearchModel(job.model).gradient(
        job.inputs[:2], Loss(LOSSES["ce"], job.labels[:2], job.labels[:2])
    )
    importlib.import_module("torch._dynamo")
    correct = adjudicator.logits(job.inputs).argmax(dim=1) == job.labels
    # Peers get the network as it comes, with parameters that take gradients.
    job.model.requires_grad_(not arguments.peer.startswith("robench"))
    if arguments.task == "pgd-20":  # half a second: what a first call costs would be a tenth of it
        PEERS[arguments.peer](job)
    proposed, seconds, figures = PEERS[arguments.peer](job)
    broken = adjudicator.judge(proposed.float(), job.inputs, job.labels).broken
    robust = 100 * float((correct & ~broken).double().mean())
    found = (correct & broken).nonzero().squeeze(1).tolist()
    figures["broken"] = [job.dataset.sample_ids[row] for row in found]
    print(json.dumps({**seconds, "robust_acc": robust, **figures}))


if __name__ == "__main__":
    main()
