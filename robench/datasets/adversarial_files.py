"""Adversarial inputs that were made elsewhere: read from a file or given, and matched to samples.

Nothing in a file is executed, nothing is clipped, and nothing is guessed: whose input each is, is
said by ids or by the data set's own order and number, and the labels, where there are some, have to
agree. What cannot be matched for sure is refused as a whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from robench.datasets.arrays import INPUT_KEYS, LABEL_KEYS, named_texts, read_array_file
from robench.datasets.base import Dataset
from robench.datasets.labels import class_labels
from robench.datasets.pixels import array_tensor
from robench.errors import DataError, one_line
from robench.files import file_sha256

_ADVERSARIAL_KEYS = ("adv_inputs", "adversarial", "adv_complete", "x_adv", "adv", "X_adv")
_ID_KEYS = ("ids", "sample_ids")

_FAR = 0.5
"""Values this far outside [0, 1] in most inputs are of another range, whatever ε is"""

_ASKED = 16
"""So many inputs, spread over the file, say whether its order is the data set's"""

_GREY_LEVEL = 1 / 255
"""By so much more than ε inputs are far from a sample: they may have been rounded to 8 bits"""


@dataclass(frozen=True)
class MatchedInputs:
    """Adversarial inputs, and whose they are."""

    name: str
    """Of the file, without its ending"""
    sha256: str
    """Of the file; of tensors that were given, of what they hold"""
    read_as: str
    """By which rules, in words"""
    inputs: Tensor
    """float32 (k, C, H, W), not clipped"""
    rows: Tensor
    """int64 (k,): the sample of each, by its position in the data set"""

    @classmethod
    def of(
        cls, name: str, read_as: str, inputs: Tensor, ids: Sequence[str], dataset: Dataset
    ) -> Self:
        """Inputs float32 (k, C, H, W) of the samples with these ids, all the data set's; the hash is of
        what they hold."""
        place = {name: row for row, name in enumerate(dataset.sample_ids)}
        rows = torch.tensor([place[sample] for sample in ids], dtype=torch.int64)
        return cls(name, _content_sha256(inputs, dataset, rows), read_as, inputs, rows)


@dataclass(frozen=True)
class AdversarialFile:
    """What a file, or tensors in its place, hold; not matched to anything yet."""

    name: str
    where: str
    sha256: str | None
    """None: of what the tensors hold"""
    key: str | None
    """Of the inputs among several arrays"""
    inputs: Tensor
    ids: Sequence[str] | None
    labels: Any

    @classmethod
    def of(cls, source: Any) -> AdversarialFile:
        """Read a file, or take a tensor, array, pair (inputs, labels) or named arrays.

        Names understood, in this order: ``adv_inputs adversarial adv_complete x_adv adv X_adv``, then
        those of clean inputs (``inputs images x data X``), or whatever a single array is called;
        optionally ``ids`` or ``sample_ids``, and labels as data sets name them.

        Raises:
            DataError: there is no such file, it is damaged or would execute code, or holds no
                numbers under these names.
        """
        if not isinstance(source, (str, Path)):
            return cls._with("tensors", "the inputs given", None, source)
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError("the file does not exist", where=path)
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise DataError(f"cannot be read: {one_line(error)}", where=path) from error
        return cls._with(path.stem, str(path), digest, read_array_file(path))

    @classmethod
    def _with(cls, name: str, where: str, sha256: str | None, content: Any) -> AdversarialFile:
        if isinstance(content, (tuple, list)) and len(content) == 2 and _ndim(content[0]) > 2:
            content = {"inputs": content[0], "labels": content[1]}
        if not isinstance(content, Mapping):
            inputs = array_tensor(content, "inputs", where)
            return cls(name, where, sha256, None, inputs, None, None)
        named = {str(key): value for key, value in content.items() if value is not None}
        ids = next((named[key] for key in _ID_KEYS if key in named), None)
        labels = next((named[key] for key in LABEL_KEYS if key in named), None)
        known = [key for key in (*_ADVERSARIAL_KEYS, *INPUT_KEYS) if key in named]
        others = [key for key in named if key not in (*_ID_KEYS, *LABEL_KEYS)]
        if not known and len(others) != 1:
            raise DataError(
                f"no adversarial inputs among the arrays {sorted(named)}",
                where=where,
                hint=f"Name them {_ADVERSARIAL_KEYS[0]!r} (also understood: "
                f"{', '.join((*_ADVERSARIAL_KEYS[1:], *INPUT_KEYS))})",
            )
        key = (known or others)[0]
        return cls(
            name,
            where,
            sha256,
            key,
            array_tensor(named[key], key, where),
            None if ids is None else named_texts(ids, "ids", where),
            labels,
        )

    def fits(self, dataset: Dataset) -> bool:
        """Whether the data set has these ids, or as many samples as there are inputs."""
        if self.ids is not None:
            return set(self.ids) <= set(dataset.sample_ids)
        return self.inputs.ndim > 0 and len(self.inputs) == len(dataset)

    def matched(self, dataset: Dataset, eps: float) -> MatchedInputs:
        """The inputs as pixels, each with its sample.

        Floating point is taken as it is, in [0, 1]; uint8 is divided by 255. Channels come second
        or last, as the data set's shape says; grey inputs may lack their axis.

        Args:
            dataset: the samples.
            eps: of the ball, [0, 1] pixel units; inputs that leave the box by more are no longer
                taken for pixels, if most do.

        Raises:
            DataError: another type, shape, range or number of inputs; ids that are unknown or
                there twice; labels that are not the samples'; inputs that are other samples'.
        """
        pixels, scale = self._pixels()
        inputs, layout = self._channels_first(pixels, dataset.input_shape)
        rows, order = self._rows(dataset)
        self._check_range(inputs, min(eps, _FAR))
        self._check_labels(dataset, rows)
        self._check_order(inputs, dataset, rows, eps)
        digest = self.sha256 or _content_sha256(inputs, dataset, rows)
        parts = [f"array {self.key!r}"] if self.key is not None else []
        read_as = ", ".join([*parts, scale, layout, order])
        return MatchedInputs(self.name, digest, read_as, inputs, rows)

    def _pixels(self) -> tuple[Tensor, str]:
        dtype = str(self.inputs.dtype).removeprefix("torch.")
        if self.inputs.dtype == torch.uint8:
            return self.inputs.float() / 255, "uint8 divided by 255"
        if self.inputs.is_floating_point():
            return self.inputs.float(), f"{dtype} in [0, 1]"
        raise DataError(
            f"the inputs are {dtype}",
            where=self.where,
            hint="Give floats in [0, 1], or uint8 from 0 to 255",
        )

    def _channels_first(self, pixels: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
        channels, height, width = shape
        own = tuple(pixels.shape[1:])
        if own == shape:
            return pixels, "NCHW"
        if own == (height, width, channels):
            return pixels.movedim(-1, 1).contiguous(), "NHWC"
        if channels == 1 and own == (height, width):
            return pixels.unsqueeze(1), "NHW"
        raise DataError(
            f"the inputs have shape {tuple(pixels.shape)}, the samples {shape}",
            where=self.where,
            hint=f"Give (N, {channels}, {height}, {width}) or (N, {height}, {width}, {channels})",
        )

    def _rows(self, dataset: Dataset) -> tuple[Tensor, str]:
        """Whose inputs these are, int64 (k,), and how that is known."""
        count, source = len(self.inputs), f"{dataset.name} ({dataset.split})"
        if count == 0:
            raise DataError("there are no inputs", where=self.where)
        if self.ids is None:
            if count != len(dataset):
                raise DataError(
                    f"{count} inputs without ids for {len(dataset)} samples of {source}",
                    where=self.where,
                    hint="Give one for each sample, in the data set's order and with the same --n, "
                    "or an array 'ids'",
                )
            return torch.arange(count), "in the data set's order"
        if len(self.ids) != count:
            raise DataError(f"{count} inputs but {len(self.ids)} ids", where=self.where)
        name, times = Counter(self.ids).most_common(1)[0]
        if times > 1:
            raise DataError(f"the id {name!r} is there {times} times", where=self.where)
        place = {name: row for row, name in enumerate(dataset.sample_ids)}
        if unknown := [name for name in self.ids if name not in place]:
            raise DataError(
                f"{len(unknown)} of {count} ids are none of {source}, such as {unknown[0]!r}",
                where=self.where,
                hint=f"They are like {dataset.sample_ids[0]!r}",
            )
        return torch.tensor([place[name] for name in self.ids]), "by their ids"

    def _check_range(self, inputs: Tensor, far: float) -> None:
        finite = torch.where(inputs.isfinite(), inputs, 0.5).flatten(1)
        low, high = finite.amin(dim=1), finite.amax(dim=1)
        strays = torch.maximum(-low, high - 1) > far
        if 2 * int(strays.sum()) > len(inputs):
            counts = float(low.min()) >= 0 and 1 < float(high.max()) <= 255
            raise DataError(
                f"the inputs range over [{float(low.min()):.6g}, {float(high.max()):.6g}], not [0, 1]",
                where=self.where,
                hint="Divide them by 255" if counts else "Undo what they were normalised by",
            )

    def _check_labels(self, dataset: Dataset, rows: Tensor) -> None:
        if self.labels is None:
            return
        count = len(rows)
        given, _ = class_labels(
            self.labels, where=self.where, class_names=dataset.class_names, num_classes=None
        )
        if given.shape != (count,):
            raise DataError(
                f"{count} inputs but labels of shape {tuple(given.shape)}", where=self.where
            )
        differing = (given != dataset.labels[rows]).nonzero().squeeze(1)
        if len(differing):
            first = int(differing[0])
            name, own = dataset.sample_ids[int(rows[first])], int(dataset.labels[rows[first]])
            raise DataError(
                f"{len(differing)} of {count} labels are not the samples', the first of {name!r}: "
                f"{int(given[first])} instead of {own}",
                where=self.where,
                hint="Bring the inputs into the data set's order, or give their ids",
            )

    def _check_order(self, inputs: Tensor, dataset: Dataset, rows: Tensor, eps: float) -> None:
        """Are most inputs, of some, no farther than ε in every pixel from other samples than their
        own? A ball of radius ε, whatever its norm, is inside that box."""
        near = eps + _GREY_LEVEL
        asked = torch.linspace(0, len(rows) - 1, min(len(rows), _ASKED)).long()
        far = _farthest_pixel(inputs[asked], dataset.batch(rows[asked]).cpu()) > near
        strays = asked[far]
        if 2 * len(strays) <= len(asked):
            return
        whose = torch.full((len(strays),), -1)
        for part in torch.split(torch.arange(len(dataset)), _ASKED):
            samples = dataset.batch(part).cpu()
            for place, stray in enumerate(strays.tolist()):
                theirs = part[_farthest_pixel(inputs[stray], samples) <= near]
                if len(theirs):
                    whose[place] = theirs[0]
        known = whose >= 0
        if 2 * int(known.sum()) <= len(asked):
            return
        own, other = int(rows[strays[known][0]]), int(whose[known][0])
        names = dataset.sample_ids
        raise DataError(
            f"{int(known.sum())} of {len(asked)} inputs that were looked at are near other samples "
            f"than their own: that of {names[own]!r} near {names[other]!r}",
            where=self.where,
            hint="Bring the inputs into the data set's order, or give their ids"
            if self.ids is None
            else "Give each input the id of its own sample",
        )


def _farthest_pixel(inputs: Tensor, samples: Tensor) -> Tensor:
    """The largest difference in any pixel, (N,)."""
    return (inputs - samples).abs().flatten(1).amax(dim=1)


def _ndim(value: Any) -> int:
    return int(getattr(value, "ndim", 0))


def _content_sha256(inputs: Tensor, dataset: Dataset, rows: Tensor) -> str:
    digest = hashlib.sha256()
    for row, pixels in zip(rows.tolist(), inputs, strict=True):
        digest.update(f"{dataset.sample_ids[row]}\0".encode())
        digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()
