"""Metrics of the correctly classified samples: from files with masks to numbers with an answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_models import TinyCNN
from metric_values import attention_values
from PIL import Image
from torch import Tensor, nn

import robench
from robench.api import evaluate
from robench.attention import AttentionExtractor
from robench.datasets import ArrayDataset, load_dataset
from robench.errors import DataError
from robench.evaluation.record_builder import half_broken
from robench.evaluation.sample_metrics import SampleMetrics, summarise
from robench.models import wrap_module
from robench.records import AttackSpec, AttentionSpec, Outcome, Suite

pytestmark = pytest.mark.usefixtures("unexamined")

CPU = torch.device("cpu")
SHORT = Suite(name="short", attacks=(AttackSpec(name="pgd-2", attack="pgd", params={"steps": 2}),))
SQUARE = 4
"""Side of the bright square in the corner of an image of 8 x 8."""


class Brightness(nn.Module):
    """Says ``bright`` (class 0) or ``dark`` (class 1) by the mean of the pixels.

    Grad-CAM for ``bright`` at ``look`` is the image itself, in some scale; for ``dark`` every
    weight is negative, so that its map is empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 1, 1, bias=False)
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.look.weight.fill_(1 / 3)
            self.fc.weight.copy_(torch.tensor([[50.0], [-50.0]]))
            self.fc.bias.copy_(torch.tensor([-5.0, 5.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.look(inputs).mean(dim=(2, 3)))


class Flat(nn.Module):
    """No layer of it has a spatial output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs.flatten(1))


def wrapped(module: nn.Module, **options):
    return wrap_module(
        module, num_classes=2, name="toy", threat_model="Linf-0.01", dataset="toy", **options
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of 8 x 8 images: a white square in the corner, or one grey pixel in the middle."""
    folder = tmp_path / "pictures"
    bright, dark = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    bright[:SQUARE, :SQUARE] = 255
    dark[4, 4] = 40
    for name, pixels in (("bright", bright), ("dark", dark)):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(pixels).save(folder / name / f"{name}{i}.png")
    return folder


def write_png(folder: Path, box: tuple[int, int, int, int]) -> Path:
    left, top, width, height = box
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[top : top + height, left : left + width] = 9
    for name in ("bright", "dark"):
        (folder / "png" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(mask).save(folder / "png" / name / f"{name}{i}.png")
    return folder / "png"


def write_voc(folder: Path, box: tuple[int, int, int, int], size: int = 8) -> Path:
    left, top, width, height = box
    (folder / "voc").mkdir()
    for name in ("bright", "dark"):
        for i in range(3):
            (folder / "voc" / f"{name}{i}.xml").write_text(
                f"<annotation><size><width>{size}</width><height>{size}</height></size>"
                f"<object><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{left + width}</xmax><ymax>{top + height}</ymax></bndbox></object>"
                "</annotation>"
            )
    return folder / "voc"


def write_coco(folder: Path, box: tuple[int, int, int, int], size: int = 8) -> Path:
    names = [f"{name}/{name}{i}.png" for name in ("bright", "dark") for i in range(3)]
    content = {
        "images": [
            {"id": i, "file_name": name, "width": size, "height": size}
            for i, name in enumerate(names)
        ],
        "annotations": [{"image_id": i, "bbox": box} for i in range(len(names))],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


WRITERS = {"png": write_png, "voc": write_voc, "coco": write_coco}


@pytest.mark.parametrize(
    ("kind", "box", "covered"),
    # An object as large as the square: half of it, all of it, none of it. A column of 2 x 8 cells
    # inside the square: the 16 brightest cells are the square, 8 of them in the column.
    [
        ("png", (2, 0, 4, 4), 0.5),
        ("png", (4, 4, 4, 4), 0.0),
        ("voc", (0, 0, 4, 4), 1.0),
        ("voc", (0, 0, 2, 8), 0.5),
        ("coco", (2, 0, 4, 4), 0.5),
        ("coco", (0, 0, 2, 8), 0.5),
    ],
)
def test_masks_on_disk_become_coverage_in_the_record(pictures, tmp_path, kind, box, covered):
    data = load_dataset(pictures, masks=WRITERS[kind](tmp_path, box))
    (stored,) = evaluate(wrapped(Brightness()), data, SHORT, threat_model="Linf-0.01", device="cpu")
    record, table = stored.record, stored.table.set_index("label")
    assert record.count(Outcome.SURVIVED) == 6
    assert record.attention_method == "grad_cam@look"
    assert table.loc[0, "attention_coverage_clean"].tolist() == [covered] * 3
    # The map of the dark class is empty: undefined and counted, not 0.
    assert table.loc[1, "attention_coverage_clean"].isna().all()
    assert table["attention_empty"].tolist() == [0, 0, 0, 1, 1, 1]
    summary = record.metrics["attention_coverage_clean"]
    assert (summary.mean, summary.n) == (covered, 3)
    assert (record.metrics["attention_empty"].mean, record.metrics["attention_empty"].n) == (0.5, 6)


def test_without_masks_there_is_no_coverage(pictures):
    (stored, *_) = evaluate(
        wrapped(Brightness()), load_dataset(pictures), SHORT, threat_model="Linf-0.01"
    )
    assert "attention_deviation" in stored.record.metrics
    assert not [name for name in stored.record.metrics if "coverage" in name]


@pytest.mark.parametrize("write", [write_voc, write_coco])
def test_boxes_that_are_not_the_images_are_refused(pictures, tmp_path, write):
    for place, box, size, words in (
        ("a", (8, 0, 4, 4), 8, "lies outside the image of 8x8"),
        ("b", (-9, 2, 4, 4), 8, "lies outside the image of 8x8"),
        ("c", (0, 0, 4, 4), 16, "for an image of 16x16, it has 8x8"),
    ):
        (tmp_path / place).mkdir()
        data = load_dataset(pictures, masks=write(tmp_path / place, box, size))
        with pytest.raises(DataError, match=words):
            data.masks([0])


@pytest.mark.parametrize("write", [write_voc, write_coco])
def test_a_box_over_the_border_is_cut(pictures, tmp_path, write):
    data = load_dataset(pictures, masks=write(tmp_path, (6, -2, 5, 4), 0))
    masks = data.masks([0])
    assert masks is not None
    assert masks[0].nonzero().tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]


def test_masks_of_another_size_are_refused(pictures, tmp_path):
    masks = write_png(tmp_path, (0, 0, 4, 4))
    Image.new("L", (4, 4), 1).save(masks / "bright" / "bright1.png")
    data = load_dataset(pictures, masks=masks)
    with pytest.raises(DataError, match=r"bright1.png: the mask is 4x4, its image 8x8"):
        evaluate(wrapped(Brightness()), data, SHORT, threat_model="Linf-0.01")


# --- which map, which layer, which class ------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    """A network, 12 samples of which 9 count, and neighbours of those."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(12, 1, 6, 6, generator=generator)
    labels = torch.arange(12) % 3
    rows = torch.tensor([0, 1, 3, 4, 5, 7, 8, 10, 11])
    model = wrap_module(
        TinyCNN(classes=3),
        num_classes=3,
        name="tiny",
        threat_model="Linf-0.1",
        input={"channels": 1},
    )
    dataset = ArrayDataset(inputs, labels, num_classes=3)
    noise = 0.1 * torch.randn(9, 1, 6, 6, generator=generator)
    return model, dataset, rows, (inputs[rows] + noise).clamp(0, 1)


@pytest.mark.parametrize(
    ("target", "method", "batch_size"),
    [
        ("true", "grad_cam", 2),
        ("true", "feature_sum", 100),
        ("predicted", "grad_cam", 100),
        ("predicted", "feature_sum", 2),
        (2, "grad_cam", 2),
        (2, "feature_sum", 100),
    ],
)
def test_values_are_those_of_the_maps(problem, target, method, batch_size):
    model, dataset, rows, adv_inputs = problem
    spec = AttentionSpec(method=method)
    metrics = SampleMetrics(model, dataset, rows, CPU, batch_size, attention=spec, target=target)
    values = metrics.values(adv_inputs)
    maps = []
    for inputs in (dataset.batch(rows), adv_inputs):
        classes = {
            "true": dataset.labels[rows],
            "predicted": model(inputs).argmax(dim=1).detach(),
        }.get(target, torch.full((9,), 2))
        maps.append(AttentionExtractor(model, method=method)(inputs, classes))
    for name, column in attention_values(*maps).items():
        torch.testing.assert_close(values[name], column, equal_nan=True, msg=name)
    assert metrics.description is not None
    assert metrics.description.startswith(f"{method}@")


class RoundsFewOtherwise(TinyCNN):
    """As libraries do."""

    def forward(self, inputs):
        return super().forward(inputs if len(inputs) >= 4 else inputs * (1 - 2.0**-10))


def test_a_last_batch_of_one_sample_is_measured_as_the_others(problem):
    _, dataset, rows, adv_inputs = problem
    network = RoundsFewOtherwise(classes=3)
    model = wrap_module(network, num_classes=3, threat_model="Linf-0.1", input={"channels": 1})
    whole, cut = (SampleMetrics(model, dataset, rows, CPU, size) for size in (100, 8))
    values = cut.values(adv_inputs)
    for name, column in whole.values(adv_inputs).items():
        assert torch.equal(values[name].nan_to_num(9), column.nan_to_num(9)), name


def test_a_network_without_a_spatial_layer_says_so_and_keeps_its_features():
    inputs = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    dataset = ArrayDataset(inputs, torch.arange(6) % 2, num_classes=2)
    metrics = SampleMetrics(wrapped(Flat()), dataset, torch.arange(6), CPU, 4)
    values = metrics.values(inputs)
    assert set(values) == {"alignment", "exclusion", "separation"}
    (flag,) = metrics.methods.flags
    assert (flag.name, flag.severity) == ("no_attention", "note")
    assert "puts out a spatial feature map" in flag.evidence


def test_no_rows_no_values(problem):
    model, dataset, _, _ = problem
    nothing = SampleMetrics(model, dataset, torch.empty(0, dtype=torch.int64), CPU, 4)
    assert nothing.values(torch.empty(0, 1, 6, 6)) == {}


def test_undefined_values_are_left_out_of_means():
    values = {"m": torch.tensor([1.0, math.nan, 3.0, 5.0, math.nan])}
    broken = torch.tensor([1, 1, 0, 0, 0]).bool()
    survived = torch.tensor([0, 0, 1, 0, 0]).bool()
    found = summarise(values, broken, survived)["m"]
    assert (found.mean, found.mean_broken, found.mean_survived, found.n) == (2.0, 1.0, 3.0, 2)
    none = summarise(values, ~broken & False, survived & False)["m"]
    assert (none.mean, none.n) == (None, 0)


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize(("broken", "survived"), [(0, 5), (5, 0), (1, 4), (4, 1), (3, 3), (0, 0)])
def test_panels_are_full_and_half_broken_where_they_can_be(count, broken, survived):
    kinds = torch.tensor([True] * broken + [False] * survived, dtype=torch.bool)
    chosen = half_broken(kinds, ~kinds, count)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, broken + survived)
    fallen = int(kinds[chosen].sum())
    assert fallen >= min(broken, count // 2)
    assert len(chosen) - fallen >= min(survived, count // 2)


def test_a_model_that_fails_while_it_is_looked_at_keeps_its_verdicts(pictures: Path) -> None:
    class Flaky(Brightness):
        """Raises once it is told to."""

        available = True

        def forward(self, inputs: Tensor) -> Tensor:
            if not self.available:
                raise RuntimeError("temporarily unavailable")
            return super().forward(inputs)

    network, data = Flaky(), load_dataset(pictures)
    metrics = SampleMetrics(wrapped(network), data, torch.arange(2), CPU, 2)
    assert metrics.methods.extractor is not None
    metrics.model.network.available = False
    inputs = data.batch([0, 1])
    assert metrics.values(inputs) == metrics.values(inputs) == {}
    assert metrics.maps(inputs, data.labels) is metrics.features(inputs) is None
    (flag,) = metrics.methods.flags
    assert flag.name == "no_metrics"
    assert "temporarily unavailable" in flag.evidence


class AntiAdversary(Brightness):
    """Moves its inputs along their own gradient before it looks at them."""

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            moved = inputs.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(super().forward(moved).amax(dim=1).sum(), moved)
        return super().forward((inputs + 0.01 * slope.sign()).clamp(0, 1))


class Shy(Brightness):
    """Raises what only its own code knows where a layer is looked at."""

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.look._forward_hooks
        return super().forward(inputs)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(AntiAdversary, "RuntimeError: The differentiated Tensor"), (Shy, "AssertionError")],
)
def test_a_network_that_allows_no_look_keeps_its_record(
    pictures: Path, tmp_path: Path, network: type[nn.Module], reason: str
) -> None:
    options = {"threat_model": "Linf-0.01", "device": "cpu", "precision": "fp32", "workers": 1}
    (stored,) = robench.evaluate(network(), pictures, SHORT, results=tmp_path / "out", **options)
    (flag,) = [flag for flag in stored.record.flags if flag.name == "no_attention"]
    assert flag.evidence.startswith(reason)
    assert set(stored.table["outcome"]) == {"survived"}
