"""Reasons to doubt a number, found during and after the attacks, as data.

What is seen before them, from the model alone, is :mod:`robench.doctor`'s. Zero gradients, Square's
gain and missing target classes are AutoAttack's own flags (fra31/auto-attack, ``checks.py`` and
``flags_doc.md``), with its thresholds and denominators; what Square gains is a warning only where its
interval lies above the threshold, and a note before. The reference looks for zero gradients at
the start of APGD on the DLR losses; here every attack that follows gradients is watched, but not
on cross-entropy, whose slope vanishes where a model is merely confident. What flags can say is "no
flag raised", never "passed".
"""

from collections import Counter
from collections.abc import Sequence

from robench.formatting import fixed
from robench.records import AttackSpec, Flag, Outcome, RunCounts
from robench.results.tables import SampleRows
from robench.statistics import RESOLUTION, exact, is_resolved

FLAGS_OF_ATTACKS = (
    "zero_gradients",
    "nonfinite_gradients",
    "square_lowers_accuracy",
    "few_classes",
    "stage_skipped",
    "workers_stalled",
    "errored_samples",
)
"""The names of all of them"""


def attack_flags(
    spec: AttackSpec,
    runs: Sequence[RunCounts],
    *,
    num_classes: int | None,
    n: int,
) -> list[Flag]:
    """What the attacks themselves give reason to doubt.

    ``runs`` are what the stages of ``spec`` came to, ``n`` all samples of the data set, the
    misclassified ones included; of a sample that is attacked several times each time counts.
    ``num_classes`` is None where attacks choose no targets.
    """
    flags = [
        _gradients(runs, "zero_gradients", "started with a zero gradient"),
        _gradients(runs, "nonfinite_gradients", "met a gradient of NaN or infinity"),
        _square(runs, n),
        None if num_classes is None else _few_classes(spec, num_classes),
        *(
            Flag(name="stage_skipped", severity="note", evidence=run.result.skipped)
            for run in runs
            if run.listed and run.result.skipped
        ),
    ]
    return [flag for flag in flags if flag is not None]


def _gradients(runs: Sequence[RunCounts], kind: str, what: str) -> Flag | None:
    """Searches of each stage whose gradients cannot guide them; rechecks are not counted again."""
    found, searches = Counter[str](), Counter[str]()
    for run in runs:
        if not run.recheck:
            found[run.result.name] += getattr(run, kind)
            searches[run.result.name] += run.searches
    if not found.total():
        return None
    shares = [f"{k} of {searches[name]} searches of {name}" for name, k in found.items() if k]
    return Flag(
        name=kind,
        severity="severe" if kind == "nonfinite_gradients" else "warning",
        evidence=f"{', '.join(shares)} {what}",
        count=found.total(),
    )


def _square(runs: Sequence[RunCounts], n: int) -> Flag | None:
    """Square, which sees no gradients, should add next to nothing after the gradient attacks."""
    broken = sum(run.result.broken for run in runs if run.attack == "square" and run.stage > 0)
    if broken <= RESOLUTION * n:
        return None
    masked = is_resolved(broken, n)
    gain = exact(broken, n).scaled(100)
    meaning = "gradients may be masked" if masked else "no more than chance may make of 0.2 points"
    return Flag(
        name="square_lowers_accuracy",
        severity="warning" if masked else "note",
        evidence=f"Square broke {broken} of {n} samples after the gradient attacks, "
        f"{fixed(gain.estimate, 1)} points of accuracy (95 % interval {fixed(gain.low, 2)} to "
        f"{fixed(gain.high, 2)}): {meaning}",
        count=broken,
    )


def _few_classes(spec: AttackSpec, num_classes: int) -> Flag | None:
    """Stages that aim at more classes than there are wrong ones."""
    short = [
        f"{stage.name} ({wanted} wanted)"
        for stage in spec.stages or (spec,)
        if (wanted := int(stage.params.get("targets", 0))) > num_classes - 1
    ]
    if not short:
        return None
    return Flag(
        name="few_classes",
        severity="note",
        evidence=f"{num_classes - 1} target classes for {', '.join(short)}",
    )


def stalled_flags(count: int) -> list[Flag]:
    """What is said of ``count`` workers that made no progress: they change no result."""
    if not count:
        return []
    return [
        Flag(
            name="workers_stalled",
            severity="note",
            evidence=f"{count} workers made no step in five minutes and were ended; their samples "
            "were searched in the process itself. A thread pool of the model's own, which a fork "
            "lacks, does this: --workers 1 avoids the wait",
            count=count,
        )
    ]


def errored_flags(samples: SampleRows) -> list[Flag]:
    """What is said of samples on which the model failed under attack: whether they are robust, nobody
    knows, though they count as not robust. ``samples`` are all of the record."""
    errored = samples.of_outcome(Outcome.ERRORED)
    failed = [one for one in errored if one.clean_prediction is not None]
    if not failed:
        return []
    return [
        Flag(
            name="errored_samples",
            severity="severe",
            evidence=f"the model failed under attack on {len(failed)} of {len(samples)} samples, "
            f"which count as not robust; on the first: {failed[0].message}",
            count=len(failed),
        )
    ]
