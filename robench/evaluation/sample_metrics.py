"""Attention and representation on the very samples that an attack produced."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from robench.attention.catalogue import AttentionExtractor
from robench.attention.masks import downsample_masks
from robench.datasets import Dataset
from robench.devices import filled
from robench.errors import RobenchError, first_line
from robench.evaluation.adversarial_inputs import ReadInputs
from robench.metric_catalogue import measure
from robench.models.wrapper import RobenchModel
from robench.records import AttentionSpec, Flag, MetricSummary
from robench.representations.features import penultimate_features

ResultT = TypeVar("ResultT")

Target = Literal["true", "predicted"] | int
"""The class that maps are for: each sample's own, the one predicted for each input, or one class."""


@dataclass
class Methods:
    """How a network is looked at; what it does not allow is None, and named in a flag."""

    extractor: AttentionExtractor | None = None
    feature_layer: str | None = None
    """None: the last linear layer"""
    has_features: bool = False
    flags: tuple[Flag, ...] = ()


@dataclass
class _CleanSide:
    """Maps, features and objects of the clean inputs; None where there are none."""

    maps: Tensor | None = None
    features: Tensor | None = None
    masks: Tensor | None = None


@dataclass(eq=False)
class SampleMetrics:
    """Every metric for the correctly classified samples of one model and data set.

    What concerns the clean inputs is computed once for all attacks, when it is first needed.
    """

    model: RobenchModel
    """On its device; used in float32 as it is"""
    dataset: Dataset
    rows: Tensor
    """int64 (m,): the correctly classified samples"""
    device: torch.device
    batch_size: int
    attention: AttentionSpec | None = field(default=None, kw_only=True)
    """How to look at attention and features; None: as the model's card says"""
    target: Target = field(default="true", kw_only=True)
    """The class that maps are for"""

    @cached_property
    def labels(self) -> Tensor:
        """int64 (m,)"""
        return self.dataset.labels[self.rows]

    @cached_property
    def methods(self) -> Methods:
        """What the network allows; nothing where there are no samples to find out on."""
        if len(self.rows) == 0:
            return Methods()
        spec = self.attention or self.model.attention
        probe = self.dataset.batch(self.rows[:1]).to(self.device)
        found = Methods(feature_layer=spec.feature_layer)
        if spec.method != "none":
            try:
                extractor = AttentionExtractor(self.model, method=spec.method, layer=spec.layer)
                extractor.prepare(probe)
                extractor(probe, self.labels[:1].to(self.device))
                found.extractor = extractor
            except Exception as error:  # A network may raise anything, as one that takes gradients.
                found.flags += (_note("no_attention", error),)
        try:
            with torch.no_grad():
                penultimate_features(self.model, probe, layer=spec.feature_layer)
            found.has_features = True
        except Exception as error:
            found.flags += (_note("no_features", error),)
        return found

    @property
    def description(self) -> str | None:
        """The map and the layer it is taken at, None if there are none."""
        extractor = self.methods.extractor
        return None if extractor is None else extractor.describe()

    def values(self, adv_inputs: ReadInputs, shown: Tensor | None = None) -> dict[str, Tensor]:
        """Every metric by its column's name: float32 (m,), NaN where undefined.

        Args:
            adv_inputs: (m, C, H, W) on the CPU, in the order of ``rows``.
            shown: bool (m,), samples that have an adversarial input; of the others only the
                metrics of the clean map are defined, and they are in no other sample's value.
                None: all.

        Where the model raises, or takes a way past the layer that is looked at, nothing is defined, and
        a flag of the :attr:`methods` says why: what the attacks found is worth keeping.
        """
        if len(self.rows) == 0:
            return {}
        return self._if_it_can(lambda: self._measured(adv_inputs, shown)) or {}

    def _if_it_can(self, look: Callable[[], ResultT]) -> ResultT | None:
        """What looking at the model gives; None and a flag where it raises, whatever it raises."""
        try:
            return look()
        except Exception as error:
            evidence = f"attention and features could not be measured: {first_line(error)}"
            flag = Flag(name="no_metrics", severity="note", evidence=evidence)
            if flag not in self.methods.flags:
                self.methods.flags += (flag,)
            return None

    def _measured(self, adv_inputs: ReadInputs, shown: Tensor | None) -> dict[str, Tensor]:
        clean, features = self._clean, None
        attention: list[dict[str, Tensor]] = []
        # Batch by batch: what the metrics put beside the maps is several times as large.
        for part in self._parts():
            maps, seen = self._look(adv_inputs[part], self.labels[part])
            features = self._filled(features, part, seen)
            if clean.maps is not None and maps is not None:
                masks = None if clean.masks is None else clean.masks[part]
                attention.append(measure(maps=clean.maps[part], adv_maps=maps, masks=masks))
        columns = attention[0] if attention else ()
        values = {name: torch.cat([batch[name] for batch in attention]) for name in columns}
        missing = torch.zeros(len(self.rows)).bool() if shown is None else ~shown
        if clean.features is not None and features is not None:
            values |= of_features(clean.features, features, self.labels, missing)
        return {
            name: column if name.endswith("_clean") else column.masked_fill(missing, torch.nan)
            for name, column in values.items()
        }

    def features(self, adv_inputs: ReadInputs) -> tuple[Tensor, Tensor] | None:
        """Of the clean and of the adversarial inputs (m, C, H, W), (m, D) each on the CPU: what
        metrics that compare samples with each other are made of. None where there are none."""
        return self._if_it_can(lambda: self._features_of(adv_inputs))

    def _features_of(self, adv_inputs: ReadInputs) -> tuple[Tensor, Tensor] | None:
        clean = None if len(self.rows) == 0 else self._clean.features
        found = None
        if clean is None:
            return None
        for part in self._parts():
            found = self._filled(found, part, self._features(adv_inputs[part].to(self.device)))
        return None if found is None else (clean, found)

    def maps(self, inputs: Tensor, labels: Tensor) -> Tensor | None:
        """Attention maps (n, h, w) on the CPU for inputs (n, C, H, W), None if there are none."""
        return self._if_it_can(lambda: self._maps_of(inputs, labels))

    def _maps_of(self, inputs: Tensor, labels: Tensor) -> Tensor | None:
        parts = [
            self._look(inputs[part], labels[part])[0]
            for part in torch.split(torch.arange(len(labels)), self.batch_size)
        ]
        present = [part for part in parts if part is not None]
        return torch.cat(present) if present else None

    @cached_property
    def _clean(self) -> _CleanSide:
        clean = _CleanSide()
        for part in self._parts():
            rows = self.rows[part]
            maps, features = self._look(self.dataset.batch(rows), self.labels[part])
            # Batch by batch: whole masks of many large images would fill the memory.
            masks = None if maps is None else self._masks(rows, maps)
            clean.maps = self._filled(clean.maps, part, maps)
            clean.features = self._filled(clean.features, part, features)
            clean.masks = self._filled(clean.masks, part, masks)
        return clean

    def _parts(self) -> tuple[Tensor, ...]:
        return torch.split(torch.arange(len(self.rows)), self.batch_size)

    def _filled(self, whole: Tensor | None, part: Tensor, values: Tensor | None) -> Tensor | None:
        """``whole`` with ``values`` at ``part``; joining lists would hold all of it twice."""
        if values is None:
            return whole
        if whole is None:
            whole = values.new_empty((len(self.rows), *values.shape[1:]))
        whole[part] = values
        return whole

    def _masks(self, rows: Tensor, maps: Tensor) -> Tensor | None:
        """Where the objects are on the maps' grid, if the data set knows."""
        masks = self.dataset.masks(rows)
        if masks is None:
            return None
        grid = int(maps.shape[1]), int(maps.shape[2])
        return downsample_masks(masks, grid, image_size=self.dataset.input_shape[1:])

    def _look(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Maps and features of one batch, on the CPU."""
        methods, inputs = self.methods, inputs.to(self.device)
        maps = None
        if methods.extractor is not None:
            here = filled(slice(0, len(inputs)), self.device, self.batch_size)
            asked = inputs[here]
            targets = self._targets(asked, labels.to(self.device)[here])
            maps = methods.extractor(asked, targets).detach().cpu()[: len(inputs)]
        return maps, self._features(inputs)

    def _features(self, inputs: Tensor) -> Tensor | None:
        """Of one batch on the device, on the CPU."""
        if not self.methods.has_features:
            return None
        asked = inputs[filled(slice(0, len(inputs)), self.device, self.batch_size)]
        with torch.no_grad():
            found, *_ = penultimate_features(self.model, asked, layer=self.methods.feature_layer)
        return found.cpu()[: len(inputs)]

    def _targets(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if self.target == "true":
            return labels
        if self.target == "predicted":
            with torch.no_grad():
                predicted: Tensor = self.model(inputs).argmax(dim=1)
            return predicted
        return torch.full_like(labels, self.target)


def _note(name: str, error: Exception) -> Flag:
    """Why there is something missing; of an error that is not robench's its kind is said too."""
    kind = "" if isinstance(error, RobenchError) else f"{type(error).__name__}: "
    return Flag(name=name, severity="note", evidence=f"{kind}{first_line(error)}")


def of_features(
    features: Tensor, adv_features: Tensor, labels: Tensor, missing: Tensor
) -> dict[str, Tensor]:
    """Every metric of features (m, D) by its column's name, (m,).

    ``adv_features`` are written to: samples that are ``missing`` an adversarial input, bool (m,),
    are in no other sample's value, and have none.
    """
    adv_features[missing] = torch.nan
    values: dict[str, Tensor] = measure(features=features, adv_features=adv_features, labels=labels)
    return {name: column.masked_fill(missing, torch.nan) for name, column in values.items()}


def summarise(
    values: dict[str, Tensor], broken: Tensor, survived: Tensor
) -> dict[str, MetricSummary]:
    """Means over all correctly classified samples, over the broken and over the survivors.

    Metrics are (m,), NaN where undefined; ``broken`` and ``survived`` bool (m,).
    """
    return {
        name: MetricSummary.of(
            *(column[which & ~column.isnan()].tolist() for which in (broken, survived))
        )
        for name, column in values.items()
    }
