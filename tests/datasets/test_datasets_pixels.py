"""What stored values become: every mode, depth, orientation and type, by hand."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from combinations import one_at_a_time
from fake_hub_data import Rows, Value
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import robench
from robench.datasets import ArrayDataset, FolderDataset, from_torch, load_dataset
from robench.datasets.hugging_face import HuggingFaceDataset
from robench.errors import DataError

LEVELS = (0.2, 0.8)
SHAPE = (4, 4)


def folder_of(root: Path, suffix: str, images: list[Any], **save: Any) -> Path:
    """Two classes with an image each; a bytes object is the file itself."""
    for name, image in zip("ab", images, strict=True):
        path = root / name / f"0{suffix}"
        path.parent.mkdir(parents=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **save)
    return root


def constant(value: float, dtype: Any) -> Image.Image:
    return Image.fromarray(np.full(SHAPE, value, dtype))


def levels(dataset: Any) -> list[float]:
    return [float(v) for v in dataset.batch([0, 1]).mean((1, 2, 3))]


def plain_pgm(value: float) -> bytes:
    return f"P2\n4 4\n1023\n{' '.join([str(int(1023 * value))] * 16)}\n".encode()


def raw_pgm(value: float) -> bytes:
    return b"P5\n4 4\n65535\n" + np.full(16, int(65535 * value), ">u2").tobytes()


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize(
    "suffix, make",
    [
        (".png", lambda v: constant(255 * v, np.uint8)),
        (".png", lambda v: constant(65535 * v, np.uint16)),
        (".tif", lambda v: constant(65535 * v, np.uint16)),
        (".tif", lambda v: constant(v, np.float32)),
        (".pgm", raw_pgm),
        (".ppm", plain_pgm),
    ],
    ids=["8-bit png", "16-bit png", "16-bit tiff", "float tiff", "16-bit pgm", "10-bit pgm"],
)
def test_grey_of_any_depth_is_scaled_by_its_range(
    tmp_path: Path, suffix: str, make: Any, grey: bool
) -> None:
    root = folder_of(tmp_path / "d", suffix, [make(v) for v in LEVELS])
    for options in ({}, {"size": 3, "interpolation": "bicubic"}, {"crop": 2}):
        dataset = FolderDataset.open(root, grey=grey, **options)
        assert levels(dataset) == pytest.approx(LEVELS, abs=0.005)
        assert dataset.input_shape[0] == (1 if grey else 3)


@pytest.mark.parametrize(
    "head, most, kind",
    [("P5", 100, np.uint8), ("P5", 1000, ">u2"), ("P6", 100, np.uint8), ("P6", 4095, ">u2")],
)
def test_values_above_a_files_own_maximum_are_refused(
    tmp_path: Path, head: str, most: int, kind: Any
) -> None:
    values = np.full(16 * (1 if head == "P5" else 3), most // 2).astype(kind)
    values[0] = most
    sound = f"{head}\n4 4\n{most}\n".encode()
    root = folder_of(tmp_path / "d", ".pnm", [sound + values.tobytes()] * 2)
    assert float(FolderDataset.open(root).batch([0]).max()) == 1
    values[5] = most + 1
    (root / "b" / "0.pnm").write_bytes(sound + values.tobytes())
    with pytest.raises(
        DataError, match=rf"b/0\.pnm: a value is {most + 1}, .* none is above {most}"
    ):
        FolderDataset.open(root).batch([1])


def test_colours_that_a_palette_has_not_are_refused(tmp_path: Path) -> None:
    indices = np.zeros(SHAPE, np.uint8)
    indices[0, 0] = 1
    images = []
    for highest in (1, 200):
        indices[1, 1] = highest
        image = Image.fromarray(indices.copy())
        image.putpalette([255, 0, 0, 0, 255, 0])
        images.append(image)
    root = folder_of(tmp_path / "d", ".bmp", images)
    assert FolderDataset.open(root).batch([0])[0, :, 0, 0].tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"b/0\.bmp: a pixel has colour 200 of a palette of 2"):
        FolderDataset.open(root).batch([1])


def test_sixteen_bits_are_not_rounded_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 1, 300, 65535]], np.uint16)
    root = folder_of(tmp_path / "d", ".png", [Image.fromarray(values)] * 2)
    pixels = FolderDataset.open(root, grey=True).batch([0]).flatten()
    assert torch.equal(pixels, torch.tensor([0, 1, 300, 65535]) / 65535)


def test_twelve_bits_in_a_tiff_and_white_as_zero(tmp_path: Path) -> None:
    Image.fromarray(np.full(SHAPE, 13107, np.uint16)).save(tmp_path / "x.tif", tiffinfo={262: 0})
    content = (tmp_path / "x.tif").read_bytes()
    dataset = FolderDataset.open(folder_of(tmp_path / "d", ".tif", [content] * 2), grey=True)
    assert levels(dataset) == pytest.approx([0.8, 0.8], abs=1e-4)
    # Two values of 12 bits in three bytes: 0x333 is 0.2 of 0xfff.
    head = Image.fromarray(np.full((2, 2), 1, np.uint16))
    head.save(tmp_path / "y.tif")
    with Image.open(tmp_path / "y.tif") as image:
        offset = image.tag_v2[273][0]
    raw = bytearray((tmp_path / "y.tif").read_bytes())
    at = raw.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")
    raw[at + 8] = 12
    raw[offset : offset + 6] = b"\x33\x33\x33" * 2
    dataset = FolderDataset.open(folder_of(tmp_path / "e", ".tif", [bytes(raw)] * 2), grey=True)
    assert levels(dataset) == pytest.approx([0.2, 0.2], abs=1e-3)


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda v: constant(65535 * v, np.int32),
            "32-bit integers with a sign in TIFF.*white=65535",
        ),
        (lambda v: constant(255 * v, np.float32), r"not \[0, 1\]"),
        (lambda v: constant(-v, np.float32), r"not \[0, 1\]"),
        (lambda v: constant(float("nan"), np.float32), "nan"),
    ],
    ids=["int32", "floats to 255", "negative", "nan"],
)
def test_what_does_not_say_its_white_is_refused_by_path(
    tmp_path: Path, make: Any, words: str
) -> None:
    root = folder_of(tmp_path / "d", ".tif", [make(v) for v in LEVELS])
    with pytest.raises(DataError, match=rf"a/0\.tif: .*{words}"):
        FolderDataset.open(root, grey=True).batch([0])


@pytest.mark.parametrize("dtype, white", [(np.int32, 65535), (np.float32, 255), (np.uint16, 4095)])
def test_white_can_be_said(tmp_path: Path, dtype: Any, white: int) -> None:
    root = folder_of(tmp_path / "d", ".tif", [constant(white * v, dtype) for v in LEVELS])
    assert levels(load_dataset(root, white=white, grey=True)) == pytest.approx(LEVELS, abs=1e-3)
    eight = folder_of(tmp_path / "e", ".png", [constant(v, np.uint8) for v in (0, 1)])
    assert levels(load_dataset(eight, white=1)) == [0, 1]
    with pytest.raises(DataError, match=r"\[33, 33\], not \[0, 1\] after division by 16"):
        load_dataset(folder_of(tmp_path / "f", ".png", [constant(33, np.uint8)] * 2), white=16)


def palette(alpha: bool) -> Image.Image:
    image = Image.new("P", SHAPE, 1)
    image.putpalette([9, 9, 9, 255, 51, 0])
    if alpha:
        image.info["transparency"] = bytes([0, 128])
    return image


@pytest.mark.parametrize(
    "image, suffix",
    [
        (palette(False), ".png"),
        (palette(True), ".png"),
        (palette(False), ".gif"),
        (Image.new("RGBA", SHAPE, (255, 51, 0, 0)), ".png"),
        (Image.new("CMYK", SHAPE, (0, 204, 255, 0)), ".tif"),
    ],
    ids=["palette", "palette with alpha", "gif", "transparent", "cmyk"],
)
def test_colours_are_those_stored_whatever_the_mode(
    tmp_path: Path, image: Image.Image, suffix: str
) -> None:
    save = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    root = folder_of(tmp_path / "d", suffix, [image] * 2, **save)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = FolderDataset.open(root).batch([0])[0, :, 0, 0]
    assert pixels.tolist() == pytest.approx([1, 0.2, 0])


@pytest.mark.parametrize("mode, colour", [("1", 1), ("L", 255), ("LA", (255, 7))])
@pytest.mark.parametrize("grey", [True, False])
def test_one_bit_and_grey_with_alpha(tmp_path: Path, mode: str, colour: Any, grey: bool) -> None:
    image = Image.new(mode, SHAPE, 0)
    image.putpixel((1, 0), colour)
    dataset = FolderDataset.open(folder_of(tmp_path / "d", ".png", [image] * 2), grey=grey)
    expected = torch.zeros(1 if grey else 3, *SHAPE)
    expected[:, 0, 1] = 1
    assert torch.equal(dataset.batch([0])[0], expected)


TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF's orientation → what it does to the stored rows and columns."""


@pytest.mark.parametrize(
    ("orientation", "suffix"),
    one_at_a_time([6, 1, 2, 3, 4, 5, 7, 8], [".png", ".tif", ".webp", ".jpg"]),
)
def test_images_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, 16:] = 255, 0, 0
    stored[8:, :16] = 0, 0, 255
    exif = Image.Exif()
    exif[274] = orientation
    save: dict[str, Any] = {"exif": exif, "lossless": True, "quality": 100, "subsampling": 0}
    if suffix == ".tif":
        save = {"tiffinfo": {274: orientation}}
    root = folder_of(tmp_path / "d", suffix, [Image.fromarray(stored)] * 2, **save)
    shown = torch.from_numpy(np.ascontiguousarray(TURNED[orientation](stored))).permute(2, 0, 1)
    boxes = tmp_path / "masks" / "a"
    boxes.mkdir(parents=True)
    mask = np.uint8(255) * (shown.permute(1, 2, 0).numpy()[:, :, 0] > 0)
    Image.fromarray(mask).save(boxes / "0.png")
    dataset = FolderDataset.open(root, masks=tmp_path / "masks")
    assert (dataset.batch([0])[0] - shown / 255).abs().max() < 0.02
    found = dataset.masks([0])
    assert found is not None
    assert torch.equal(found[0], torch.from_numpy(mask > 0))


def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    image = Image.new("RGB", SHAPE, (255, 0, 0))
    root = folder_of(tmp_path / "d", ".jpg", [image] * 2, exif=b"Exif\x00\x00garbage")
    assert FolderDataset.open(root).batch([0]).shape == (1, 3, *SHAPE)


@pytest.mark.parametrize(
    "dtype, white",
    [
        ("bool", 1),
        ("uint8", 255),
        ("uint16", 65535),
        ("float16", 1),
        ("float32", 1),
        ("float64", 1),
    ],
)
def test_one_rule_for_arrays_files_torch_and_hub(tmp_path: Path, dtype: str, white: int) -> None:
    values = np.array([0, 1, 0, 1] if dtype == "bool" else [0, 0.25, 0.5, 1]) * white
    array = np.tile(values.astype(dtype), (4, 1, 4, 1))
    expected = torch.from_numpy(array.astype(np.float64) / white).to(torch.float32)
    labels = [0, 1, 0, 1]
    np.savez(tmp_path / "d.npz", inputs=array, labels=labels)
    tensor = torch.from_numpy(array)
    rows = Rows({"image": list(array), "label": labels}, {"image": Value(), "label": Value()})
    ways = {
        "array": ArrayDataset(tensor, labels),
        "pair": from_torch((array, labels)),
        "file": load_dataset(tmp_path / "d.npz"),
        "torch": from_torch(list(zip(tensor, labels, strict=True))),
        "numpy items": from_torch(list(zip(array, labels, strict=True))),
        "hub": HuggingFaceDataset(rows, name="x", split="test"),
    }
    for way, dataset in ways.items():
        assert torch.equal(dataset.batch(range(4)), expected), way
        assert dataset.batch([0]).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint32", "complex64"])
def test_one_refusal_for_arrays_files_torch_and_hub(tmp_path: Path, dtype: str) -> None:
    array = np.full((2, 1, 4, 4), 100).astype(dtype)
    np.savez(tmp_path / "d.npz", inputs=array, labels=[0, 1])
    rows = Rows({"image": list(array), "label": [0, 1]}, {"image": Value(), "label": Value()})
    for way in (
        lambda **o: ArrayDataset(torch.from_numpy(array), [0, 1], **o),
        lambda **o: from_torch((array, [0, 1]), **o),
        lambda **o: load_dataset(tmp_path / "d.npz", **o),
        lambda **o: from_torch(list(zip(array, [0, 1], strict=True)), **o),
    ):
        with pytest.raises(DataError, match=rf"inputs are torch\.{dtype}.*white="):
            way()
        if dtype != "complex64":
            assert float(way(white=125).batch([0]).mean()) == pytest.approx(0.8)
    with pytest.raises(DataError, match=rf"row 0: inputs are torch\.{dtype}"):
        HuggingFaceDataset(rows, name="x", split="test")


@pytest.mark.parametrize("dtype, highest", [("uint8", 1), ("uint8", 16), ("uint16", 255)])
def test_a_set_that_is_all_dark_is_in_doubt(dtype: str, highest: int) -> None:
    array = np.arange(32).reshape(2, 1, 4, 4) % (highest + 1)
    array[0, 0, 0, 0] = highest
    with pytest.raises(DataError, match=f"none is above {highest}.*white={highest}"):
        from_torch((array.astype(dtype), [0, 1]))
    read = from_torch((array.astype(dtype), [0, 1]), white=highest)
    assert torch.equal(read.batch([0, 1]), torch.from_numpy(array).float() / highest)
    assert not from_torch((0 * array.astype(dtype), [0, 1])).batch([0]).any(), "black is black"


def test_rounding_in_double_precision_is_no_range_error() -> None:
    inputs = np.full((2, 1, 2, 2), np.nextafter(1.0, 2.0))
    assert float(from_torch((inputs, [0, 1])).batch([0]).max()) == 1.0


@pytest.mark.parametrize("order", [">f4", ">u2", ">f8"])
def test_other_byte_orders_and_strides(order: str) -> None:
    values = np.linspace(0, 1, 32).reshape(2, 1, 4, 4)
    full = 65535 if "u" in order else 1
    array = (values * full).astype(order)[::-1, :, :, ::-1]
    array.flags.writeable = False
    expected = torch.from_numpy(array.astype(np.float64) / full).float()
    assert torch.equal(from_torch((array, [0, 1])).batch([0, 1]), expected)


IMAGES = torch.arange(32).reshape(2, 1, 4, 4) / 31
CONJUGATE = torch.complex(IMAGES, -IMAGES).conj()
READABLE = {
    "sparse": lambda: IMAGES.to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(IMAGES, 1 / 31, 0, torch.quint8),
    "negative view": lambda: CONJUGATE.imag,
    "conjugate view": lambda: CONJUGATE.real,
    "with gradients": lambda: IMAGES.clone().requires_grad_() * 1.0,
    "not contiguous": lambda: IMAGES.movedim(1, -1).contiguous().movedim(-1, 1),
    "expanded": lambda: IMAGES[:1].expand(2, 1, 4, 4),
    "half": lambda: IMAGES.bfloat16(),
    "a list of tensors": lambda: list((IMAGES.clone().requires_grad_() * 1.0).unbind()),
    "a list of halves": lambda: list(IMAGES.half().unbind()),
}


@pytest.mark.filterwarnings("ignore:.*quant:DeprecationWarning", "ignore:.*quant:UserWarning")
@pytest.mark.parametrize("kind", READABLE)
def test_tensors_of_every_kind_are_their_values(kind: str) -> None:
    given: Any = READABLE[kind]()
    labels = torch.tensor([[1, 0], [0, 1]]).to_sparse()
    read = from_torch({"inputs": given, "labels": labels})
    assert read.labels.tolist() == [0, 1]
    expected = IMAGES[:1].expand(2, 1, 4, 4) if kind == "expanded" else IMAGES
    assert torch.allclose(read.batch([0, 1]), expected, atol=0.004)
    if isinstance(given, torch.Tensor):
        assert torch.equal(from_torch((given, [0, 1])).batch([0, 1]), read.batch([0, 1]))
        items = [(given[label], label) for label in (0, 1)]
        assert torch.equal(from_torch(items).batch([0, 1]), read.batch([0, 1]))
        assert torch.equal(ArrayDataset(given, [0, 1]).batch([0, 1]), read.batch([0, 1]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["meta", "nested", "complex", "ragged", "masked", "bits"])
def test_tensors_without_values_are_refused_in_one_line(kind: str) -> None:
    given: Any = {
        "meta": lambda: IMAGES.to("meta"),
        "nested": lambda: torch.nested.nested_tensor([IMAGES[0], IMAGES[1, :, :2]]),
        "complex": lambda: CONJUGATE,
        "ragged": lambda: [IMAGES[0], IMAGES[1, :, :2]],
        "masked": lambda: np.ma.masked_less(IMAGES.numpy(), 0.5),
        "bits": lambda: IMAGES.mul(9).byte().view(torch.bits8),
    }[kind]()
    ways = [lambda: from_torch({"inputs": given, "labels": [0, 1]})]
    if isinstance(given, torch.Tensor):
        ways += [lambda: ArrayDataset(given, [0, 1]), lambda: ArrayDataset(IMAGES, given)]
    if kind in ("meta", "bits"):
        ways.append(lambda: from_torch([(given[0], 0), (given[1], 1)]))
        ways.append(lambda: from_torch([(IMAGES[0], given[0, 0, 0, 0]), (IMAGES[1], 1)]))
    for way in ways:
        with pytest.raises(DataError) as refused:
            way()
        assert "\n" not in str(refused.value)


ODD = {
    "CMYK": ((0, 204, 255, 0), (1, 0.2, 0)),
    "YCbCr": ((76, 85, 255), (1, 0, 0)),
    "HSV": ((0, 255, 255), (1, 0, 0)),
    "RGBX": ((255, 51, 0, 9), (1, 0.2, 0)),
    "RGBa": ((255, 51, 0, 255), (1, 0.2, 0)),
    "La": ((51, 255), (0.2, 0.2, 0.2)),
    "LA": ((51, 3), (0.2, 0.2, 0.2)),
    "I;16": (13107, (0.2, 0.2, 0.2)),
    "F": (0.2, (0.2, 0.2, 0.2)),
    "1": (1, (1, 1, 1)),
}


@pytest.mark.parametrize("mode", ODD)
def test_every_mode_of_pillows_becomes_rgb_or_grey(mode: str, tmp_path: Path) -> None:
    colour, expected = ODD[mode]
    image = Image.new(mode, SHAPE, colour)
    pixels = from_torch([(image, 0), (image, 1)]).batch([0])[0, :, 0, 0].tolist()
    assert pixels == pytest.approx(expected[: len(pixels)], abs=0.01)
    if mode in ("CMYK", "YCbCr", "RGBX", "LA", "I;16", "F", "1"):
        root = folder_of(tmp_path / "d", ".tif", [image] * 2)
        found = FolderDataset.open(root).batch([0])[0, :, 0, 0].tolist()
        assert found == pytest.approx(expected, abs=0.01)
    if mode == "CMYK":
        root = folder_of(tmp_path / "e", ".jpg", [image] * 2, quality=100)
        found = FolderDataset.open(root).batch([0])[0, :, 0, 0].tolist()
        assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("options", [{}, {"grey": True}, {"size": 3}, {"white": 255}])
def test_lab_is_refused_by_path(tmp_path: Path, options: dict[str, Any]) -> None:
    root = folder_of(tmp_path / "d", ".tif", [Image.new("LAB", SHAPE, (50, 0, 0))] * 2)
    with pytest.raises(DataError, match=r"a/0\.tif: the image has mode LAB.*Convert it to RGB"):
        FolderDataset.open(root, **options).batch([0])


SIXTEEN = np.arange(16, dtype=np.uint8).reshape(SHAPE)


def dark_images(highest: int) -> list[Image.Image]:
    return [Image.fromarray((SIXTEEN % (highest + 1)).astype(np.uint8)), constant(0, np.uint8)]


DARK: dict[str, Any] = {
    "pair": lambda x, y, **o: from_torch((x, y), **o),
    "dictionary": lambda x, y, **o: from_torch({"x": x, "y": y}, **o),
    "TensorDataset": lambda x, y, **o: from_torch(TensorDataset(x, torch.tensor(y)), **o),
    "loader": lambda x, y, **o: from_torch(DataLoader(TensorDataset(x, torch.tensor(y))), **o),
    "own collate": lambda x, y, **o: from_torch(
        DataLoader(TensorDataset(x, torch.tensor(y)), collate_fn=lambda rows: default_collate(rows)), **o
    ),
    "numpy items": lambda x, y, **o: from_torch([(i.numpy(), k) for i, k in zip(x, y, strict=True)], **o),
    "pictures": lambda x, y, **o: from_torch(
        [(Image.fromarray(i[0].numpy()), k) for i, k in zip(x, y, strict=True)], **o
    ),
}  # fmt: skip


@pytest.mark.parametrize("highest", [1, 15])
@pytest.mark.parametrize("way", DARK)
def test_dark_integers_are_in_doubt_whatever_way_they_come_in(way: str, highest: int) -> None:
    inputs = torch.from_numpy(np.stack([np.asarray(image) for image in dark_images(highest)]))
    inputs = inputs.unsqueeze(1)
    with pytest.raises(DataError, match=rf"white={highest}\b.*white=255") as refused:
        DARK[way](inputs, [0, 1])
    assert "\n" not in str(refused.value)
    read = DARK[way](inputs, [0, 1], white=highest)
    assert torch.allclose(read.batch([0, 1]), inputs / highest)
    assert float(DARK[way](inputs, [0, 1], white=255).batch([0]).max()) == highest / np.float32(255)


@pytest.mark.parametrize("highest", [1, 15])
@pytest.mark.parametrize("options", [{}, {"grey": True}, {"size": 8, "interpolation": "nearest"}])
def test_dark_folders_are_in_doubt(tmp_path: Path, highest: int, options: dict[str, Any]) -> None:
    root = folder_of(tmp_path / "d", ".png", dark_images(highest))
    with pytest.raises(DataError, match=rf"white={highest} of 8 bits, or white=255"):
        load_dataset(root, **options)
    assert float(load_dataset(root, white=highest, **options).batch([0]).max()) == 1
    assert len(load_dataset(root, white=255, **options)) == 2
    rows = Rows({"image": dark_images(highest), "label": [0, 1]}, {"image": Value(), "label": Value()})  # fmt: skip
    with pytest.raises(DataError, match=f"white={highest} of 8 bits"):
        HuggingFaceDataset(rows, name="x", split="test")


def test_one_bright_image_says_what_white_is(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "d", ".png", dark_images(15))
    for name in "cd":
        (root / name).mkdir()
        constant(0, np.uint8).save(root / name / "0.png")
    constant(18, np.uint8).save(root / "d" / "1.png")
    assert len(load_dataset(root)) == 5
    assert len(load_dataset(root, n=1)) == 1, "of some of them too"
    black = folder_of(tmp_path / "e", ".png", [constant(0, np.uint8)] * 2)
    assert not load_dataset(black).batch([0, 1]).any()


def test_floats_that_were_divided_twice_are_in_doubt() -> None:
    """Refused where a transform made them; flagged where somebody gave the tensor itself."""
    inputs = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 255
    one_by_one = TensorDataset(inputs, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(DataError, match="white"):
        from_torch(one_by_one)
    assert float(from_torch(one_by_one, white=1).batch(range(4)).max()) == float(inputs.max())
    pair = (inputs, [0, 1, 0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    options = {"threat_model": "Linf-0.001", "input": {"channels": 1}, "device": "cpu"}
    for white, flags in ((None, ["dark_inputs"]), (1, [])):
        data = from_torch(pair, white=white).subset(4)
        record = robench.evaluate(model, data, "quick", **options)[0].record
        assert [f.name for f in record.flags if f.name == "dark_inputs"] == flags


@pytest.mark.parametrize(
    "image, white",
    [(constant(9, np.uint8), 4095), (Image.new("RGB", SHAPE, (9, 9, 9)), 256),
     (constant(9, np.uint16), 65536), (Image.new("RGB", SHAPE).quantize(2), 300)],
    ids=["8 bits", "colour", "16 bits", "palette"],
)  # fmt: skip
def test_a_white_that_an_image_cannot_hold_is_refused(
    tmp_path: Path, image: Image.Image, white: int
) -> None:
    root = folder_of(tmp_path / "d", ".png", [image] * 2)
    with pytest.raises(DataError, match=rf"a/0\.png: white={white} is beyond the largest value"):
        load_dataset(root, white=white)
    with pytest.raises(DataError, match=f"white={white} is beyond"):
        from_torch([(image, 0), (image, 1)], white=white)


@pytest.mark.parametrize("dtype, white", [("uint8", 4095), ("uint16", 70000), ("bool", 255)])
def test_a_white_that_a_type_cannot_hold_is_refused(dtype: str, white: int) -> None:
    inputs = np.ones((2, 1, 4, 4), dtype)
    with pytest.raises(DataError, match=rf"white={white} is beyond the largest value of torch"):
        from_torch((inputs, [0, 1]), white=white)


def test_white_of_one_bit_is_1(tmp_path: Path) -> None:
    image = Image.fromarray(SIXTEEN > 7)
    root = folder_of(tmp_path / "d", ".png", [image] * 2)
    for options in ({}, {"white": 1}, {"white": 255}):
        found = load_dataset(root, grey=True, **options).batch([0])
        assert torch.equal(found[0, 0], torch.from_numpy(SIXTEEN > 7).float())


def tiff(
    kind: str, bits: int, count: int, photometric: int, *tags: tuple[int, int], of: Any = ""
) -> bytes:
    """A TIFF of 2 x 2 pixels: ``kind`` u, i or f for numbers without sign, with one, or floats."""
    values = np.asarray(of).astype(f"<{kind}{bits // 8}")
    pixels = np.broadcast_to(values, (4, count)).tobytes() if values.ndim == 1 else values.tobytes()
    formats, sizes = [{"u": 1, "i": 2, "f": 3}[kind]] * count, [bits] * count
    palette = [0, 65535] * 384 if photometric == 3 else []
    fields = [(256, 2), (257, 2), (259, 1), (262, photometric), (277, count), (278, 2), *tags]
    longs = {258: sizes, 339: formats} | ({320: palette} if palette else {})
    longs |= {tag: [value] for tag, value in fields}
    longs |= {273: [0], 279: [len(pixels)]}
    body, beside, at = [], b"", 8 + 2 + 12 * len(longs) + 4
    for tag, numbers in sorted(longs.items()):
        raw = struct.pack(f"<{len(numbers)}H", *numbers)
        if len(raw) > 4:
            raw, beside, at = struct.pack("<I", at), beside + raw, at + len(raw)
        body.append((tag, len(numbers), raw.ljust(4, b"\0")))
    entries = b"".join(
        struct.pack("<HHI", tag, 3, number) + (struct.pack("<I", at) if tag == 273 else raw)
        for tag, number, raw in body
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(body)) + entries + b"\0" * 4 + beside + pixels


GREY_LEVELS = [[0], [64], [128], [255]]
TIFFS: dict[str, tuple[bytes, Any]] = {
    "8 bits": (tiff("u", 8, 1, 1, of=GREY_LEVELS), [0, 64 / 255, 128 / 255, 1]),
    "8 bits, white is 0": (tiff("u", 8, 1, 0, of=GREY_LEVELS), [1, 191 / 255, 127 / 255, 0]),
    "16 bits": (tiff("u", 16, 1, 1, of=[[0], [13107], [52428], [65535]]), [0, 0.2, 0.8, 1]),
    "16 bits, white is 0": (tiff("u", 16, 1, 0, of=[[0], [13107], [52428], [65535]]), [1, 0.8, 0.2, 0]),
    "floats": (tiff("f", 32, 1, 1, of=[[0], [0.2], [0.8], [1]]), [0, 0.2, 0.8, 1]),
    "floats, white is 0": (tiff("f", 32, 1, 0, of=[[0], [0.2], [0.8], [1]]), [1, 0.8, 0.2, 0]),
    "8 bits with a sign": (tiff("i", 8, 1, 1, of=[[-1], [0], [1], [99]]), "have a sign"),
    "16 bits with a sign": (tiff("i", 16, 1, 1, of=[[0]] * 4), "16-bit integers with a sign in TIFF"),
    "32 bits": (tiff("u", 32, 1, 1, of=[[0]] * 4), "32-bit integers in TIFF"),
    "32 bits with a sign": (tiff("i", 32, 1, 1, of=[[0]] * 4), "32-bit integers with a sign in TIFF"),
    "64 bits": (tiff("f", 64, 1, 1, of=[[0]] * 4), "no such numbers"),
    "half floats": (tiff("f", 16, 1, 1, of=[[0]] * 4), "no such numbers"),
    "colour": (tiff("u", 8, 3, 2, of=[255, 51, 0]), (1, 0.2, 0)),
    "colour of 16 bits": (tiff("u", 16, 3, 2, of=[65535, 13107, 0]), (1, 0.2, 0)),
    "colour with a sign": (tiff("i", 8, 3, 2, of=[99, 51, 0]), "no such numbers"),
    "colour and a further channel": (tiff("u", 8, 4, 2, (338, 0), of=[255, 51, 0, 9]), (1, 0.2, 0)),
    "alpha": (tiff("u", 8, 4, 2, (338, 2), of=[255, 51, 0, 128]), (1, 0.2, 0)),
    "multiplied by alpha": (tiff("u", 8, 4, 2, (338, 1), of=[128, 25, 0, 128]), (1, 0.2, 0)),
    "grey and alpha": (tiff("u", 8, 2, 1, (338, 2), of=[51, 128]), (0.2, 0.2, 0.2)),
    "palette": (tiff("u", 8, 1, 3, of=[[1]] * 4), (1, 1, 1)),
    "palette and alpha": (tiff("u", 8, 2, 3, (338, 2), of=[1, 128]), (1, 1, 1)),
    "palette with a sign": (tiff("i", 8, 1, 3, of=[[1]] * 4), "no such numbers"),
    "CMYK": (tiff("u", 8, 4, 5, of=[0, 204, 255, 0]), (1, 0.2, 0)),
    "CMYK of 16 bits": (tiff("u", 16, 4, 5, of=[0, 52428, 65535, 0]), (1, 0.2, 0)),
    "CMYK with a sign": (tiff("i", 8, 4, 5, of=[0, 99, 99, 0]), "no such numbers"),
    "other inks": (tiff("u", 8, 4, 5, (332, 2), of=[0, 204, 255, 0]), "inks are not CMYK"),
    "LAB": (tiff("u", 8, 3, 8, of=[99, 0, 0]), "mode LAB"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", TIFFS)
def test_every_kind_of_number_in_a_tiff_has_a_rule_or_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    content, expected = TIFFS[name]
    root = folder_of(tmp_path / "d", ".tif", [content] * 2)
    if isinstance(expected, str):
        for options in ({}, {"white": 4095}) if "integers" not in expected else ({},):
            with pytest.raises(DataError, match=rf"a/0\.tif: .*{expected}"):
                FolderDataset.open(root, **options)
        return
    pixels = FolderDataset.open(root).batch([0])[0]
    found = pixels[0].flatten() if isinstance(expected, list) else pixels[:, 0, 0]
    assert found.tolist() == pytest.approx(expected, abs=0.01)
