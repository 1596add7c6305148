"""Every attention and representation metric: what it is called, means and ranges over, and what
computes it.

An entry is all that is needed: the evaluation measures it, records keep it, leaderboard, page and
figures show it. Plain data without torch: what computes a metric is imported when it is measured,
so that reports and the command line speak of metrics as the functions do. A package from outside
adds its own by an entry point of the group ``robench.metrics``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

from robench.errors import RobenchError, UsageError
from robench.registry import Registry, identity_of, import_target

Direction = Literal["lower", "higher", "neutral"]

_OF_MAPS = {"map", "maps", "adv_maps", "masks"}
_OF_FEATURES = {"features", "adv_features", "labels"}
_SPLITS = ("_clean", "_adv", "_increase")


@dataclass(frozen=True)
class Column:
    """One column of records and CSV files.

    Attributes:
        name, label: as they stand in tables, and on an axis.
        direction: which way is better; ``neutral`` describes without judging.
        low: smallest possible value, None where unbounded.
        high: largest possible value, None where unbounded or dependent on the map's size.
        unit: what one unit is.
        meaning: one line for a reader who does not know the metric.
    """

    name: str
    label: str
    direction: Direction
    low: float | None
    high: float | None
    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of single samples.

    Attributes:
        name, unit, meaning: as for :class:`Column`.
        direction: which way is better; of a metric of one map: which way its increase is.
        bounds: the smallest and the largest possible value, None where unbounded.
        compute: the function, or ``"package.module:function"``: what ``on`` names, in that order,
            to one value a sample, (N,), NaN where undefined.
        on: what it takes. Of attention: ``maps`` and ``adv_maps`` (N, h, w), 0 or larger, ``masks``
            (N, h, w) bool, the object's cells; or ``map``, either of the two, which makes three
            columns: clean, adversarial, and the increase from one to the other. Of features:
            ``features`` and ``adv_features`` (N, D), ``labels`` (N,), all samples at once.
        of_one_map: which way is better for the clean and the adversarial value.
        leaderboard: the endings of its columns that the leaderboard has.
        by_class: the endings of its columns that are shown class by class.
        figure: whether a figure shows robust accuracy against its mean.
        label: the name on an axis; without one, ``name`` in plain words.

    Raises:
        UsageError: ``on`` names nothing, something unknown, or both maps and features.
    """

    name: str
    unit: str
    meaning: str
    direction: Direction
    bounds: tuple[float | None, float | None] = (None, None)
    compute: str | Callable[..., Any]
    on: tuple[str, ...]
    of_one_map: Direction = "neutral"
    leaderboard: tuple[str, ...] = ("", "_increase")
    by_class: tuple[str, ...] = ()
    figure: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        if not self.on or not (_OF_MAPS.issuperset(self.on) or _OF_FEATURES.issuperset(self.on)):
            raise UsageError(
                f"metric {self.name!r} is on {', '.join(self.on) or 'nothing'}",
                hint=f"Name some of {', '.join(sorted(_OF_MAPS))}, or some of "
                f"{', '.join(sorted(_OF_FEATURES))}",
            )

    @property
    def needs(self) -> set[str]:
        """What must be there to compute it."""
        return {"maps", "adv_maps", *self.on} - {"map"} if "map" in self.on else set(self.on)

    def columns(self) -> Iterator[Column]:
        """Its columns: one, or the three of a metric of one map."""
        label = self.label or self.name.replace("_", " ").capitalize()
        low, high = self.bounds
        base = Column(self.name, label, self.direction, low, high, self.unit, self.meaning)
        if "map" not in self.on:
            yield base
            return
        span = None if high is None or low is None else high - low
        clean, adv, increase = (f"{self.name}{ending}" for ending in _SPLITS)
        one = replace(base, direction=self.of_one_map)
        yield replace(one, name=clean, label=f"{label} (clean)")
        words = f"{self.meaning}; adversarial map"
        yield replace(one, name=adv, label=f"{label} (adversarial)", meaning=words)
        yield replace(
            base,
            name=increase,
            label=f"{label} (increase)",
            low=None if span is None else -span,
            high=span,
            meaning=f"{self.meaning}; adversarial minus clean",
        )

    @property
    def function(self) -> Any:
        """``compute``, imported.

        Raises:
            UsageError: it cannot be imported.
        """
        return import_target(self.compute) if isinstance(self.compute, str) else self.compute

    def values(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Column → (N,), from data that has all it needs.

        Raises:
            UsageError: ``compute`` cannot be imported, fails, or returns something else.
        """
        compute = self.function
        if "map" not in self.on:
            return {self.name: self._checked(compute, [data[name] for name in self.on])}
        clean, adv = (
            self._checked(compute, [data[which if name == "map" else name] for name in self.on])
            for which in ("maps", "adv_maps")
        )
        values = (clean, adv, adv - clean)
        return {f"{self.name}{ending}": v for ending, v in zip(_SPLITS, values, strict=True)}

    def _checked(self, compute: Any, arguments: list[Any]) -> Any:
        try:
            values = compute(*arguments)
        except RobenchError:
            raise
        except Exception as error:  # Foreign code may raise anything.
            raise UsageError(
                f"metric {self.name!r} fails: {type(error).__name__}: {error}"
            ) from error
        n = len(arguments[0])
        if tuple(getattr(values, "shape", ())) != (n,):
            raise UsageError(f"metric {self.name!r} does not return one value for each of {n}")
        return values


METRIC_REGISTRY: Registry[Metric] = Registry("metric", "robench.metrics")
"""Metrics by name, in the order in which they are shown; each becomes one or three columns."""


def _own(room: str, name: str, unit: str, meaning: str, **others: Any) -> Metric:
    """A metric of robench's own, which the function of its name computes; mostly lower is better,
    and from 0 to 1."""
    usual: dict[str, Any] = {"direction": "lower", "bounds": (0.0, 1.0)}
    compute = f"robench.{room}.metrics:{name}"
    return Metric(name=name, unit=unit, meaning=meaning, compute=compute, **(usual | others))


_of_maps = partial(_own, "attention", on=("maps", "adv_maps"))
_of_map = partial(_own, "attention", on=("map",))
_of_features = partial(_own, "representations", on=("features", "adv_features", "labels"))

for _metric in (
    _of_maps(
        "attention_deviation",
        "1 - IoU",
        "how little the most attended eighth of the clean and adversarial maps overlap",
        by_class=("",),
        figure=True,
    ),
    _of_maps("attention_shift", "map diagonals", "how far the map's centre of mass moved"),
    _of_maps(
        "attention_divergence",
        "bits",
        "Jensen-Shannon divergence of the clean and adversarial maps",
    ),
    _of_map(
        "attention_scatter",
        "of a uniform map",
        "spread of the map around its centre of mass: 0 one cell, 1 uniform",
        bounds=(0.0, None),
        by_class=("_increase",),
    ),
    _of_map("attention_entropy", "of a uniform map", "evenness of the map: 0 one cell, 1 uniform"),
    _of_map(
        "attention_fragments",
        "parts",
        "connected parts of the most attended eighth of the map",
        bounds=(1.0, None),
    ),
    _of_map(
        "attention_coverage",
        "of the object",
        "share of the object among as many most attended cells",
        direction="higher",
        on=("map", "masks"),
        of_one_map="higher",
        leaderboard=("_clean", "_increase"),
        by_class=("_clean",),
    ),
    _of_maps(
        "attention_empty",
        "samples",
        "the clean or adversarial map is all zero or not finite, its metrics undefined",
        label="Empty attention maps",
    ),
    _of_features(
        "alignment",
        "cosine distance",
        "distance between the features of a sample and of its adversarial example",
        bounds=(0.0, 2.0),
        on=("features", "adv_features"),
        by_class=("",),
        figure=True,
    ),
    _of_features(
        "exclusion",
        "cosine distance",
        "distance between the features of a sample and of other classes' adversarial examples",
        direction="higher",
        bounds=(0.0, 2.0),
        figure=True,
    ),
    _of_features(
        "separation",
        "probability",
        "chance that a sample's own adversarial example is closer than one of another class",
        direction="higher",
    ),
):
    METRIC_REGISTRY.add(_metric.name, _metric, _metric.meaning)


class _Columns(Mapping[str, Column]):
    """Every metric's columns by name, those from outside included, found when first asked for."""

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name.

        Raises:
            UsageError: an entry point cannot be imported, or is no metric of its name.
        """
        found = {}
        for name in METRIC_REGISTRY:
            item = METRIC_REGISTRY[name]
            if not isinstance(item, Metric) or item.name != name:
                raise UsageError(
                    f"the metric {name!r} {METRIC_REGISTRY.summary(name)} is no Metric of that name"
                )
            found[name] = item
        return found

    @cached_property
    def _columns(self) -> dict[str, Column]:
        # Imported here: records' schemas take a moment, and only a metric's name needs them.
        from robench.records import SampleOutcome

        found: dict[str, Column] = {}
        for item in self.metrics.values():
            for column in item.columns():
                if column.name in {*found, *SampleOutcome.model_fields}:
                    raise UsageError(
                        f"metric {item.name!r} {METRIC_REGISTRY.summary(item.name)} has the column "
                        f"{column.name!r}, which is taken"
                    )
                found[column.name] = column
        return found

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


METRICS = _Columns()
"""Columns of all metrics by name, in the order in which they are shown."""


def columns_shown(where: Literal["leaderboard", "by_class"]) -> tuple[str, ...]:
    """The columns that the leaderboard has, or the tables by class."""
    return tuple(
        name
        for item in METRICS.metrics.values()
        for ending in getattr(item, where)
        if (name := f"{item.name}{ending}") in METRICS
    )


def measure(**data: Any) -> dict[str, Any]:
    """Every metric that the given data allow, of each sample.

    Args:
        data: what :attr:`Metric.on` names, of the same N samples; None is as good as absent.
            ``exclusion`` and ``separation`` compare a sample with all others: give features of
            the whole set at once, restricted to the samples that count.

    Returns:
        Column → (N,), in the catalogue's order; NaN where undefined.

    Raises:
        UsageError: malformed data, or a metric from outside that fails.
    """
    given = {name: value for name, value in data.items() if value is not None}
    values: dict[str, Any] = {}
    for item in METRICS.metrics.values():
        if item.needs <= given.keys():
            values |= item.values(given)
    return values


def foreign_metrics() -> dict[str, str]:
    """Metrics from outside robench, each with what decides its numbers (``identity_of``)."""
    found = {name: identity_of(item.function) for name, item in METRICS.metrics.items()}
    return {name: identity for name, identity in found.items() if identity is not None}
