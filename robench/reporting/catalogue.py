"""Reports by name: the tables and figures that are made of records, beside the leaderboard.

A report is one function and one entry here, or an entry point of the group ``robench.reports`` in
a package from outside. Naming reports loads neither pandas nor matplotlib.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from robench.errors import RobenchError, UsageError
from robench.metric_catalogue import METRICS
from robench.registry import Registry, identity_of, import_target

Kind = Literal["table", "figure"]

Of = Literal["group", "model", "radii", "named"]


@dataclass(frozen=True)
class Report:
    """One table or kind of figure.

    Attributes:
        kind: a table becomes ``NAME.csv`` in the results folder, and a section of the page; a
            figure ``plots/GROUP/NAME.png`` and ``.svg``.
        make: the function, or ``"package.module:function"``. A table's takes all
            :class:`~robench.reporting.model_results.ModelResult` and returns a DataFrame; a
            figure's takes those that it is ``of``, and returns a matplotlib Figure, or None where
            there is nothing to draw.
        summary: one line for people.
        of: which results a figure is of: a ``group``'s, best first; one ``model``'s, alone in a
            sequence; all ``radii``'s of one data set, norm and seed; or a group's in the order in
            which a user ``named`` them, so that nobody else draws it.
        by_attack: whether a figure's function takes an attack's name too.
        if_any: whether a table without rows is not written at all.
        goal: which results it is of, one of :data:`robench.request.GOALS`: what was robust against
            any error, or against an adversary with targets, or corrupted. No report mixes them.
    """

    kind: Kind
    make: str | Callable[..., Any]
    summary: str = ""
    of: Of = "group"
    by_attack: bool = False
    goal: str = "untargeted"
    if_any: bool = False

    @property
    def function(self) -> Callable[..., Any]:
        """``make``, imported.

        Raises:
            UsageError: it cannot be imported.
        """
        function: Any = import_target(self.make) if isinstance(self.make, str) else self.make
        return cast(Callable[..., Any], function)

    def __call__(self, results: Sequence[Any], *attack: str | None) -> Any:
        """What ``make`` makes of results, of a figure :attr:`by_attack` with the attack.

        Raises:
            UsageError: it is from outside robench, and fails.
        """
        function = self.function
        try:
            made = function(results, *attack)
        except RobenchError:
            raise
        except Exception as error:
            if (identity := identity_of(function)) is None:
                raise
            name = identity.partition(" ")[0]
            raise UsageError(f"the report {name} fails: {type(error).__name__}: {error}") from error
        wanted = "to_csv" if self.kind == "table" else "savefig"
        if not (hasattr(made, wanted) or (made is None and self.kind == "figure")):
            raise UsageError(f"a report that is a {self.kind} returns {type(made).__name__}")
        return made


REPORTS: Registry[Report] = Registry("report", "robench.reports")
"""Reports by name, in the order in which the page shows them."""

for _name, _target in (
    ("findings", "findings:attention_findings"),
    ("associations", "findings:representation_findings"),
    ("per_class", "metric_tables:class_table"),
):
    REPORTS.add(_name, Report("table", f"robench.reporting.{_target}"))
for _name, _target in (("transfer_matrix", "transfer_matrix"), ("transfers", "transfer_table")):
    REPORTS.add(_name, Report("table", f"robench.reporting.transfers:{_target}", if_any=True))
for _name in ("targeted_table", "target_matrix"):
    _report = Report("table", f"robench.reporting.targeted:{_name}", goal="targeted")
    REPORTS.add(_name.removesuffix("_table"), _report)
REPORTS.add(
    "corruptions",
    Report("table", "robench.reporting.corruptions:corruption_table", goal="corrupted"),
)

for _name, _target, _of, _by_attack, _summary in (
    (
        *("accuracy_by_attack", "accuracies:accuracy_by_attack", "group", False),
        "models in rows: worst case, clean and each attack, with intervals",
    ),
    (
        *("accuracy_heat_map", "accuracies:accuracy_heat_map", "group", False),
        "models by attacks, as figures in a matrix",
    ),
    (
        *("clean_against_robust", "robust_against:clean_against_robust", "group", False),
        "clean against robust accuracy, and the frontier",
    ),
    (
        *("attention_distributions", "distributions:attention_distributions", "group", False),
        "attention of broken and surviving samples",
    ),
    (
        *("feature_distances", "distributions:feature_distances", "group", False),
        "distances of features: alignment and exclusion",
    ),
    (
        *("transfer", "transfer:transfer_map", "group", True),
        "models by models: robust accuracy on inputs that were made for others",
    ),
    (
        *("robust_against_eps", "curves:robust_against_eps", "radii", True),
        "robust accuracy through several eps, or at every one",
    ),
    (
        *("confusion", "confusion:confusion_under_attack", "model", True),
        "which classes an attack turns into which",
    ),
    ("samples", "samples:kept_samples", "model", True, "a few samples, clean and attacked"),
    ("traces", "traces:search_traces", "model", False, "how searches went on, of --trace"),
    (
        *("differences", "accuracies:differences", "named", False),
        "accuracies less those of the model that is named first",
    ),
):
    _made = f"robench.reporting.plots.{_target}"
    REPORTS.add(_name, Report("figure", _made, _summary, cast(Of, _of), _by_attack), _summary)
REPORTS.add(
    "targeted_success",
    Report(
        "figure",
        "robench.reporting.plots.targets:targeted_success_matrix",
        "which classes are led to which targets",
        goal="targeted",
    ),
)
REPORTS.add(
    "corruption_map",
    Report(
        "figure",
        "robench.reporting.plots.corruptions:corruption_map",
        "accuracy by corruption and severity",
        goal="corrupted",
    ),
)


def reports(kind: Kind) -> dict[str, Report]:
    """The reports of one kind by name, with a figure for each metric that has one.

    Raises:
        UsageError: an entry point cannot be imported, or is no report.
    """
    found = {}
    for name in REPORTS:
        item = REPORTS[name]
        if not isinstance(item, Report) or name == "leaderboard":
            raise UsageError(f"the report {name!r} {REPORTS.summary(name)} is no Report of its own")
        if item.kind == kind:
            found[name] = item
        if kind == "figure" and name == "clean_against_robust":
            for measured in METRICS.metrics.values():
                if measured.figure:
                    *_, column = measured.columns()
                    stem = f"robust_against_{measured.name.removeprefix('attention_')}"
                    said = f"robust accuracy against {measured.name.replace('_', ' ')}"
                    draw = partial(_robust_against, column.name)
                    found[stem] = Report("figure", draw, said)
    return found


def _robust_against(column: str, results: Sequence[Any]) -> Any:
    # Imported here, as matplotlib takes half a second.
    from robench.reporting.plots.robust_against import robust_against_metric

    return robust_against_metric(results, column)
