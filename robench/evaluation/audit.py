"""The audit: later stages on a random sample of survivors, and on all of them if that finds any.

The ``core`` protocol's stages from ``first_stage`` on run on the sample first. A hit, or a
gradient that cannot guide a search, sends them to the other survivors too; otherwise the record
states how large a share of broken samples such a sample could have missed.
"""

from collections.abc import Iterable
from dataclasses import replace

from robench import seeding
from robench.evaluation.cascade_state import CascadeState, PhaseCounts
from robench.evaluation.prepared_model import PreparedModel
from robench.records import AuditResult, AuditSpec
from robench.statistics.intervals import missed_share_upper


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


def escalates(state: CascadeState, phases: Iterable[PhaseCounts]) -> bool:
    """Whether the other survivors are due as well, after the stage runs on the audited ones."""
    blind = any(counts.zero_gradients or counts.nonfinite_gradients for counts in phases)
    return blind or state.hits > 0


def audit_result(state: CascadeState, escalated: bool) -> AuditResult:
    """For the record."""
    survivors, audited, hits = state.audit_survivors, len(state.audited), state.hits
    everyone = escalated or audited == survivors
    bound = 0.0 if everyone else missed_share_upper(hits, audited, population=survivors)
    return AuditResult(
        survivors=survivors,
        audited=audited,
        hits=hits,
        escalated=escalated,
        missed_share_upper=bound if survivors else None,
    )
