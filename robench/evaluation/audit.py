"""The audit: later stages on a random sample of survivors, and on all as far as that finds any.

The ``core`` protocol's stages from ``first_stage`` on run on the sample first. The others follow up
to the last of them that hit, or whose gradients could not guide a search; the record states how
large a share of samples to be broken by the rest such a sample could have missed.
"""

from collections.abc import Sequence
from dataclasses import replace

from robench import seeding
from robench.evaluation.cascade_state import CascadeState, StageRun
from robench.evaluation.prepared_model import PreparedModel
from robench.records import AuditResult, AuditSpec
from robench.statistics.intervals import unaudited_share_upper


def draw_audit(audit: AuditSpec, state: CascadeState, prepared: PreparedModel) -> CascadeState:
    """Draw the sample of the survivors, once; their keys alone decide which are drawn."""
    if state.audit_survivors >= 0:
        return state
    survivors = state.survivors()
    keys = seeding.derive(prepared.keys_of(survivors), seeding.tag("audit"))
    if prepared.threat_model.targets is not None:  # a sample may be there once for each target
        keys = seeding.derive(keys, prepared.aims.classes[survivors])
    order = keys.argsort()
    chosen = survivors[order[: audit.sample_size(len(survivors))]].sort().values
    return replace(state, audited=chosen, audit_survivors=len(survivors))


def escalates_to(state: CascadeState, plan: Sequence[StageRun]) -> int | None:
    """The last stage that the other survivors are due for, once all ran on the audited; None: none.

    A stage that was run again in float32 is one stage. Where no audited sample is left, the stages
    after the last find have shown nothing, and all are due.
    """
    runs = [(r, c) for r, c in zip(plan, state.phases, strict=False) if r.subset == "audited"]
    found = [run.stage for run, counts in runs if counts.broken]
    found += [
        run.stage
        for run, counts in runs
        if not run.recheck and (counts.zero_gradients or counts.nonfinite_gradients)
    ]
    if not found:
        return None
    ended = sum(counts.broken + counts.errored for _, counts in runs)
    return max(found) if ended < len(state.audited) else runs[-1][0].stage


def audit_result(
    state: CascadeState, plan: Sequence[StageRun], names: Sequence[str]
) -> AuditResult:
    """For the record; ``names`` are those of the stages."""
    survivors, audited, hits = state.audit_survivors, len(state.audited), state.hits
    late = [c for run, c in zip(plan, state.phases, strict=True) if run.subset != "all"]
    broken, errored = sum(c.broken for c in late), sum(c.errored for c in late)
    reach = escalates_to(state, plan)
    if reach is None:
        bound = unaudited_share_upper(survivors, audited)
    elif reach == len(names) - 1:
        bound = 0.0
    else:
        counts = {"hits": hits, "broken": broken, "errored": errored}
        bound = unaudited_share_upper(survivors, audited, **counts)
    return AuditResult(
        survivors=survivors,
        audited=audited,
        hits=hits,
        escalated=reach is not None,
        escalated_to=None if reach is None else names[reach],
        missed_share_upper=bound if survivors else None,
    )
