"""What is asked of results that are there, from Python: exports, and the gate. Loads no torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.errors import UsageError
from robench.exports import FORMATS, Choices, Material
from robench.registry import unknown_name
from robench.regression_check.baseline import stored_pair
from robench.regression_check.gate import CheckResult
from robench.regression_check.gate import check as check_pair
from robench.regression_check.policy import Policy
from robench.request import Request
from robench.results import RecordFilter, Store

if TYPE_CHECKING:
    from robench.evaluations import Evaluation


def export(
    results: str | Path | Evaluation = "results",
    format: str = "csv",
    out: str | Path | None = None,
    *,
    models: Sequence[str] = (),
    columns: Sequence[str] = (),
    digits: int | None = None,
    intervals: bool = False,
    samples: bool = False,
    against: str | None = None,
    policy: str | Path | None = None,
    organization: str | None = None,
    request: Request | None = None,
    **wanted: Any,
) -> str | list[Path]:
    """Write stored results for papers, model hubs and CI, as ``robench export`` does.

    A field that stays empty is a warning, which names it and says why.

    Args:
        results: a results folder, or an evaluation.
        format: one of :data:`robench.exports.FORMATS`, such as ``"latex"`` or ``"parquet"``.
        out: a file or folder; None: a format that is a text is returned.
        models: only these: names, ids, or starts of a sha256; none: all.
        columns: of a table, columns of the leaderboard in this order; none: the format's own.
        digits: after the point, of percentages in a table; None: 1.
        intervals: show 95 % intervals in a table.
        samples: of csv and parquet a row for each sample of each record, not the leaderboard.
        against: of junit and sarif, the baseline that the gate holds the one model against.
        policy: of junit and sarif, the gate's, a TOML file.
        organization: of every-eval-ever, who evaluated.
        request: of png, where the data are: ``data_root`` and the like; None: an evaluation's own.
        wanted: only such records: ``dataset``, ``norm``, ``eps``, ``n``, ``seed``, ``goal``, ``targets``.

    Returns:
        The text, or the paths of what was written.

    Raises:
        UnknownNameError: there is no such format or model.
        UsageError: an option that the format does not look at, no records, or what the format needs
            and they do not hold.
        StoreError: there is no such folder, or something cannot be written.
    """
    own: dict[str, Any] = {} if isinstance(results, str | Path) else {"given": tuple(results)}
    asked = request or (Request() if isinstance(results, str | Path) else results.prepared.request)
    material = Material(
        Store.existing(results) if isinstance(results, str | Path) else Store(asked.folder),
        _filter(wanted),
        tuple(models),
        Choices(
            columns=tuple(columns),
            digits=digits,
            intervals=intervals,
            samples=samples,
            against=against,
            policy=None if policy is None else Path(policy),
            organization=organization,
        ),
        asked,
        **own,
    )
    written = FORMATS[format].write(material, None if out is None else Path(out))
    for gap in material.gaps:
        warnings.warn(f"{gap.field} stays empty for {gap.model}: {gap.why}", stacklevel=2)
    return written


def check(
    candidate: str | Evaluation,
    against: str | Evaluation,
    results: str | Path = "results",
    *,
    margin: float | None = None,
    policy: str | Path | Policy | None = None,
    baseline_from: str | Path | None = None,
    **wanted: Any,
) -> CheckResult:
    """The gate: is a candidate worse than a baseline? As ``robench check`` says it of stored records.

    Args:
        candidate, against: evaluations of one model each, or names of models in the folder ``results``.
        margin: tolerable loss of robust accuracy in percentage points, in place of the policy's.
        policy: all margins and levels, or a TOML file with them; None: the defaults.
        baseline_from: another results folder, or a leaderboard CSV, that has the baseline.
        wanted: among stored records, as for :func:`export`.

    Returns:
        ``.verdict``, ``.exit_code`` (0 not worse, 1 worse, 2 cannot tell), ``.criteria`` with the losses
        and their limits, and what forbids a pass, ``.problems``.

    Raises:
        UnknownNameError: the folder has no such model.
        UsageError: the two were not evaluated on the same samples under the same threat model.
        StoreError: there is no such folder.
    """
    rules = policy if isinstance(policy, Policy) else Policy.load(policy) if policy else Policy()
    if margin is not None:
        rules = rules.with_margin(margin)
    if isinstance(candidate, str) and isinstance(against, str):
        source = None if baseline_from is None else Path(baseline_from)
        pair = stored_pair(candidate, against, results, _filter(wanted), baseline_from=source)
        return check_pair(*pair, rules)
    if isinstance(candidate, str) or isinstance(against, str):
        raise UsageError("an evaluation and a name", hint="Give two of a kind")
    return check_pair(candidate.result, against.result, rules)


def _filter(wanted: dict[str, Any]) -> RecordFilter:
    """Which records are wanted.

    Raises:
        UnknownNameError: they are not told apart by such a thing.
    """
    unknown = [name for name in wanted if name not in RecordFilter.__dataclass_fields__]
    if unknown:
        raise unknown_name("filter", unknown[0], list(RecordFilter.__dataclass_fields__))
    return RecordFilter(**wanted)
