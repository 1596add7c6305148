"""Trials: inputs that are judged one after the other, each for every sample.

A search ends at its first find; trials go on, as each is a measurement of its own. A sample's margin in
each is kept, and its worst: the trial with the smallest margin stands for the sample.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robench.attacks import build_attack
from robench.attacks.trials import Trials
from robench.datasets import Dataset
from robench.errors import UsageError
from robench.evaluation.adjudicate import Adjudicator, Verdicts
from robench.evaluation.samples import Samples, SearchResult
from robench.execution import Progress, Save
from robench.records import Suite
from robench.threat_models import GENERATED, ThreatModel

_UNJUDGED = "the model fails, or is not finite, at {}"
_LEAST = torch.finfo(torch.float32).tiny


Images = Callable[[int], Tensor | None]
"""Number of a trial → its images (n, C, H, W) in [0, 1] of all samples; None: it means nothing for them"""


def images_of(attack: Trials, samples: Samples, dataset: Dataset, rows: Tensor) -> Images:
    """What trials are of ``samples``, which are those of ``dataset`` at ``rows``, int64 (n,): made, or
    read where the threat model names published ones.

    Raises:
        UsageError: it does, and the data set comes without them.
    """
    if attack.threat_model.corrupted == GENERATED:
        return lambda number: attack.trial(number, samples.inputs, samples.keys)
    published = dataset.published
    if published is None:
        raise UsageError(
            f"{dataset.name} comes without the images of {attack.threat_model}",
            hint="Load it with corrupted='FOLDER'",
        )

    def read(number: int) -> Tensor | None:
        found = published.read(rows.tolist(), attack.names[number])
        return None if found is None else found.to(samples.inputs.device)

    return read


def met_by(dataset: Dataset, suite: Suite) -> ThreatModel:
    """The corruptions that samples are under in a suite of them: published ones where they come with any.

    Raises:
        DataError: images that the suite needs are not there, or cannot be read.
        RobenchError: as :func:`robench.attacks.build_attack`.
    """
    threat, published = ThreatModel.corruptions(), dataset.published
    if published is None:
        return threat
    attacks = [build_attack(spec, threat) for spec in suite.for_norm(threat.family)]
    tried = [attack for attack in attacks if isinstance(attack, Trials)]
    published.check(dict.fromkeys(name for attack in tried for name in attack.needed))
    names = {name for attack in tried for name in attack.names}
    return ThreatModel.corruptions(published.identity(names))


def run_trials(
    attack: Trials,
    adjudicator: Adjudicator,
    samples: Samples,
    images: Images,
    begun: dict[str, Any] | None = None,
    *,
    save: Save | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Judge all trials of samples: by trial, the margins of the very verdicts.

    Their sign is the verdict's: a tie, whose margin is 0, is a hair above or below it. Where a trial
    means nothing the margin is +inf, where the model failed NaN.

    Args:
        attack: the trials.
        adjudicator: judges them with the original model.
        samples: the samples, misclassified ones too.
        images: what the samples are in a trial of this number, :func:`images_of`.
        begun: what ``save`` was given in an interrupted run.
        save: called after each trial; decides whether to keep a snapshot.
        progress: told how many trials were done.
    """
    count = len(attack.names)
    result, done = SearchResult.nothing_yet(samples, count), 0
    if begun is not None:
        result, done = SearchResult(**begun["result"]), int(begun["done"])
    for number in range(done, count):
        points = images(number)
        if points is not None:
            verdicts = adjudicator.judge(points, samples.inputs, samples.labels)
            _keep(result, number, attack.names[number], points, verdicts)
        if progress is not None:
            progress(len(samples))
        if save is not None:
            save(partial(dict, result=dict(vars(result)), done=number + 1))
    broken = (result.search_margins < 0).any(dim=1)
    result.settled = torch.where(broken, 0, count)
    if result.errors:
        result.settled = result.settled.masked_fill(result.errored, 0)
        result.forget(result.errored, samples.inputs)
    # Only survivors have a margin that others may still come closer with.
    result.closest_margin = torch.where(broken, torch.inf, result.closest_margin)
    return result


def _keep(result: SearchResult, number: int, name: str, points: Tensor, verdicts: Verdicts) -> None:
    result.count_passes(
        torch.arange(len(points), device=points.device), torch.ones_like(result.forwards)
    )
    margins = torch.where(
        verdicts.broken,
        verdicts.margin.clamp(max=-_LEAST),
        verdicts.margin.clamp(min=_LEAST),
    )
    failed = ~(verdicts.allowed & verdicts.finite)
    margins = margins.masked_fill(failed, torch.nan)
    result.search_margins = result.search_margins.index_copy(
        1, torch.tensor([number], device=points.device), margins[:, None]
    )
    told = dict.fromkeys(failed.nonzero().squeeze(1).tolist(), _UNJUDGED.format(name))
    result.errors = {**told, **result.errors}  # of several trials the first is said
    closer = (margins < result.closest_margin).nonzero().squeeze(1)
    result.keep(closer, points[closer], verdicts.at(closer))
    result.closest_margin = torch.minimum(result.closest_margin, margins.nan_to_num(nan=torch.inf))
