"""Attention and representation on the very samples that an attack produced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robench.attention.maps import AttentionExtractor
from robench.attention.masks import downsample_masks
from robench.datasets import Dataset
from robench.errors import RobenchError
from robench.evaluation.adversarial_inputs import ReadInputs
from robench.metric_catalogue import measure
from robench.models.wrapper import RobenchModel
from robench.records import AttentionSpec, Flag, MetricSummary
from robench.representations.features import penultimate_features

__all__ = ["Measures", "Target", "summarise"]

Target = Literal["true", "predicted"] | int
"""The class that maps are for: each sample's own, the one predicted for each input, or one class."""


@dataclass
class _Clean:
    """Maps and features of the clean inputs, computed once for all attacks on a model."""

    maps: Tensor | None = None
    features: Tensor | None = None
    masks: Tensor | None = None
    flags: list[Flag] = field(default_factory=list)


class Measures:
    """Computes every metric for the correctly classified samples of one model and data set.

    Args:
        model: the model under evaluation, on its device; used in float32 as it is.
        dataset: the samples.
        rows: the correctly classified samples, int64 (m,).
        device: where the model is.
        batch_size: inputs at a time.
        attention: how to look at attention and features; None: as the model's card says.
        target: the class that maps are for.
    """

    def __init__(
        self,
        model: RobenchModel,
        dataset: Dataset,
        rows: Tensor,
        device: torch.device,
        batch_size: int,
        *,
        attention: AttentionSpec | None = None,
        target: Target = "true",
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.rows = rows
        self.device = device
        self.batch_size = batch_size
        self.attention = model.attention if attention is None else attention
        self.target = target
        self.description: str | None = None
        self._extractor: AttentionExtractor | None = None
        self._clean: _Clean | None = None

    @property
    def flags(self) -> list[Flag]:
        """Why a kind of metric is missing, if one is."""
        return [] if self._clean is None else list(self._clean.flags)

    def values(self, adv_inputs: ReadInputs, shown: Tensor | None = None) -> dict[str, Tensor]:
        """Every metric by its column's name: float32 (m,), NaN where undefined.

        Args:
            adv_inputs: (m, C, H, W) on the CPU, in the order of ``rows``.
            shown: bool (m,), samples that have an adversarial input; of the others only the
                metrics of the clean map are defined, and they are in no other sample's value.
                None: all.
        """
        if len(self.rows) == 0:
            return {}
        clean = self._measure_clean()
        labels = self.dataset.labels[self.rows]
        attention: list[dict[str, Tensor]] = []
        found: list[Tensor | None] = []
        # Batch by batch: what the metrics put beside the maps is several times as large.
        for part in torch.split(torch.arange(len(labels)), self.batch_size):
            maps, features = self._look(adv_inputs[part], labels[part], clean)
            found.append(features)
            if clean.maps is not None and maps is not None:
                masks = None if clean.masks is None else clean.masks[part]
                attention.append(measure(maps=clean.maps[part], adv_maps=maps, masks=masks))
        columns = attention[0] if attention else ()
        values = {name: torch.cat([batch[name] for batch in attention]) for name in columns}
        features = _joined(found)
        missing = torch.zeros_like(labels, dtype=torch.bool) if shown is None else ~shown
        if clean.features is not None and features is not None:
            features[missing] = torch.nan
            values |= measure(features=clean.features, adv_features=features, labels=labels)
        for name, column in values.items():
            if not name.endswith("_clean"):
                values[name] = column.masked_fill(missing, torch.nan)
        return values

    def maps(self, inputs: Tensor, labels: Tensor) -> Tensor | None:
        """Attention maps (n, h, w) on the CPU for inputs (n, C, H, W), None if there are none."""
        clean = self._measure_clean()
        return self._look(inputs, labels, clean)[0]

    def _measure_clean(self) -> _Clean:
        if self._clean is None:
            clean = _Clean()
            inputs = self.dataset.batch(self.rows[: self.batch_size])
            clean.flags = self._choose_methods(inputs[:1])
            everything = _Clean(maps=torch.empty(0), features=torch.empty(0))
            for part in torch.split(torch.arange(len(self.rows)), self.batch_size):
                rows = self.rows[part]
                batch, labels = self.dataset.batch(rows), self.dataset.labels[rows]
                maps, features = self._look(batch, labels, everything)
                # Batch by batch: whole masks of many large images would fill the memory.
                masks = None if maps is None else self._masks(rows, maps)
                clean.maps = self._filled(clean.maps, part, maps)
                clean.features = self._filled(clean.features, part, features)
                clean.masks = self._filled(clean.masks, part, masks)
            self._clean = clean
        return self._clean

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

    def _choose_methods(self, inputs: Tensor) -> list[Flag]:
        """Find out which metrics this network allows; the others are named in a flag."""
        flags = []
        spec = self.attention
        probe = inputs.to(self.device)
        self._measures_features = True
        if spec.method != "none":
            try:
                extractor = AttentionExtractor(self.model, method=spec.method, layer=spec.layer)
                extractor.prepare(probe)
                extractor(probe, torch.zeros(len(probe), dtype=torch.int64, device=self.device))
            except RobenchError as error:
                flags.append(Flag(name="no_attention", severity="note", evidence=str(error)))
            else:
                self._extractor = extractor
                self.description = extractor.describe()
        try:
            with torch.no_grad():
                penultimate_features(self.model, probe, layer=spec.feature_layer)
        except RobenchError as error:
            self._measures_features = False
            flags.append(Flag(name="no_features", severity="note", evidence=str(error)))
        return flags

    def _look(
        self, inputs: ReadInputs, labels: Tensor, wanted: _Clean
    ) -> tuple[Tensor | None, Tensor | None]:
        maps: list[Tensor | None] = []
        features: list[Tensor | None] = []
        for part in torch.split(torch.arange(len(labels)), self.batch_size):
            on_device, classes = inputs[part].to(self.device), labels[part].to(self.device)
            if self._extractor is not None and wanted.maps is not None:
                targets = self._targets(on_device, classes)
                maps.append(self._extractor(on_device, targets).detach().cpu())
            if self._measures_features and wanted.features is not None:
                with torch.no_grad():
                    layer = self.attention.feature_layer
                    features.append(
                        penultimate_features(self.model, on_device, layer=layer)[0].cpu()
                    )
        return _joined(maps), _joined(features)

    def _targets(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if self.target == "true":
            return labels
        if self.target == "predicted":
            with torch.no_grad():
                predicted: Tensor = self.model(inputs).argmax(dim=1)
            return predicted
        return torch.full_like(labels, self.target)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def summarise(
    values: dict[str, Tensor], broken: Tensor, survived: Tensor
) -> dict[str, MetricSummary]:
    """Means over all correctly classified samples, over the broken and over the survivors.

    Args:
        values: metric → (m,), NaN where undefined.
        broken: bool (m,).
        survived: bool (m,).
    """
    return {
        name: MetricSummary(
            mean=_mean(column, broken | survived),
            mean_broken=_mean(column, broken),
            mean_survived=_mean(column, survived),
            n=int((~column.isnan() & (broken | survived)).sum()),
        )
        for name, column in values.items()
    }


def _mean(column: Tensor, chosen: Tensor) -> float | None:
    defined = column[chosen & ~column.isnan()]
    return float(defined.double().mean()) if len(defined) else None
