"""torch's data sets and loaders: what is evaluated is what they give, or they are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

import robench
from robench.datasets import from_torch
from robench.errors import DataError, UsageError
from robench.request import Request
from robench.request_loading import load_samples

INPUTS = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(40) % 10
DATA = TensorDataset(INPUTS, LABELS)


def pairs(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, int]]:
    return sorted((float(i.double().sum()), int(k)) for i, k in zip(images, labels, strict=True))


class OwnIteration(DataLoader[Any]):
    def __iter__(self) -> Any:
        for images, labels in super().__iter__():
            yield 1 - images, labels


class Strided:
    def __iter__(self) -> Iterator[int]:
        yield from range(0, 40, 3)


HONOURED: dict[str, Any] = {
    "plain": DataLoader(DATA, 16),
    "shuffle": DataLoader(DATA, 7, shuffle=True),
    "no batches": DataLoader(DATA, batch_size=None),
    "subset": DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(10))),
    "list": DataLoader(DATA, 4, sampler=[5, 3, 1]),
    "own sampler": DataLoader(DATA, 4, sampler=Strided()),
    "batch sampler": DataLoader(DATA, batch_sampler=[[0, 1], [7, 3]]),
    "batches of a sampler": DataLoader(
        DATA, batch_sampler=BatchSampler(SequentialSampler(range(9)), 4, drop_last=True)
    ),
    "drop_last": DataLoader(DATA, 16, drop_last=True),
    "drop_last that drops nothing": DataLoader(DATA, 8, drop_last=True, shuffle=True),
    "one of two ranks": DataLoader(
        DATA, 4, sampler=DistributedSampler(DATA, num_replicas=2, rank=1, shuffle=False)
    ),
    "own iteration": OwnIteration(DATA, 8),
    "subset of a concatenation": DataLoader(Subset(ConcatDataset([DATA, DATA]), range(30, 50)), 4),
}


@pytest.mark.parametrize("loader", HONOURED.values(), ids=HONOURED)
def test_what_a_loader_gives_is_what_is_read(loader: DataLoader[Any]) -> None:
    single = loader.batch_size is None and loader.batch_sampler is None
    batches = [(x[None], torch.as_tensor(y)[None]) if single else (x, y) for x, y in loader]
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    before = torch.random.get_rng_state()
    dataset = from_torch(loader)
    assert torch.equal(torch.random.get_rng_state(), before), (
        "the user's random numbers stand still"
    )
    assert pairs(dataset.batch(range(len(dataset))), dataset.labels) == pairs(images, labels)
    assert dataset.fingerprint == from_torch(loader).fingerprint


def test_a_sample_keeps_its_id_whatever_the_loader_draws() -> None:
    some = from_torch(HONOURED["list"])
    assert list(some.sample_ids) == ["torch/000001", "torch/000003", "torch/000005"]
    assert torch.equal(some.batch([1])[0], INPUTS[3])


def inverted(items: Any) -> Any:
    images, labels = default_collate(items)
    return 1 - images, labels


def noisy(items: Any) -> Any:
    images, labels = default_collate(items)
    return (images + 0.1 * torch.rand_like(images)).clamp(0, 1), labels


def relabelled(items: Any) -> Any:
    images, labels = default_collate(items)
    return images, labels.max() - labels


COLLATED = {
    "inverted": {"batch_size": 4, "collate_fn": inverted},
    "labels by their batch": {"batch_size": 8, "collate_fn": relabelled},
    "some": {"batch_size": 3, "sampler": range(5, 25), "drop_last": True, "collate_fn": inverted},
    "batches": {"batch_sampler": [[3, 1], [0]], "collate_fn": inverted},
    "one at a time": {"batch_size": None, "collate_fn": lambda item: (1 - item[0], item[1])},
}


@pytest.mark.parametrize("kind", COLLATED)
def test_what_a_loader_collates_is_what_is_read(kind: str) -> None:
    loader: Any = DataLoader(DATA, **COLLATED[kind])
    state = torch.random.get_rng_state()
    read = from_torch(loader)
    assert torch.equal(torch.random.get_rng_state(), state)
    batches = [(x, y) if x.ndim == 4 else (x[None], torch.tensor([y])) for x, y in loader]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(read.batch(range(len(read))), images)
    assert torch.equal(read.labels, labels)


def endless() -> Iterator[int]:
    while True:
        yield 0


class Endless:
    def __iter__(self) -> Iterator[int]:
        return endless()


REFUSED: dict[str, tuple[Any, str]] = {
    "shuffled collate": (
        DataLoader(DATA, 4, shuffle=True, collate_fn=inverted),
        "another order, when it is read again.*shuffling",
    ),
    "random collate": (DataLoader(DATA, 4, collate_fn=noisy), "other samples"),
    "collate to items": (DataLoader(DATA, 4, collate_fn=lambda items: items), "an image of shape"),
    "endless collate": (
        DataLoader(DATA, batch_sampler=Endless(), collate_fn=inverted),
        "Endless draws samples more than once",
    ),
    "repeats": (
        DataLoader(DATA, 4, sampler=[0, 0, 1]),
        "sampler list draws samples more than once",
    ),
    "replacement": (
        DataLoader(DATA, 4, sampler=RandomSampler(DATA, replacement=True)),
        "RandomSampler draws samples more than once",
    ),
    "weights": (
        DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * 40, 20, replacement=False)),
        "WeightedRandomSampler draws other samples each time",
    ),
    "some at random": (
        DataLoader(DATA, 4, sampler=RandomSampler(DATA, num_samples=9)),
        "RandomSampler draws other samples each time",
    ),
    "shuffled rest dropped": (
        DataLoader(DATA, 16, shuffle=True, drop_last=True),
        "RandomSampler draws other samples each time.*drop_last",
    ),
    "one use": (DataLoader(DATA, 4, sampler=iter([1, 2])), "draws other samples each time"),
    "endless": (DataLoader(DATA, 4, sampler=Endless()), "Endless draws samples more than once"),
    "lists as indices": (
        DataLoader(DATA, batch_size=None, sampler=[[0, 1]]),
        r"draws \[0, 1\], which is no index",
    ),
    "outside": (DataLoader(DATA, 4, sampler=[0, 40]), "draws index 40 of 40 samples"),
    "negative": (DataLoader(DATA, 4, sampler=[-1, 1]), "draws index -1"),
}


@pytest.mark.parametrize(("loader", "words"), REFUSED.values(), ids=REFUSED)
def test_what_a_loader_does_otherwise_is_refused_by_name(loader: Any, words: str) -> None:
    with pytest.raises((UsageError, DataError), match=words):
        from_torch(loader)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate("abcabc"):
        (tmp_path / "f" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(tmp_path / "f" / name / f"{i}.png")
    return tmp_path / "f"


class Mapped(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image, (label + 1) % 3


class Reversed(Dataset[Any]):
    def __init__(self, base: Any) -> None:
        self.base, self.targets, self.classes = base, base.targets, base.classes

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Any:
        return self.base[len(self) - 1 - index]


def edited(folder: Path) -> ImageFolder:
    data = ImageFolder(folder, ToTensor())
    data.samples = [(path, 2 - label) for path, label in data.samples]
    return data


SOURCES: dict[str, Any] = {
    "as it is": lambda f: ImageFolder(f, ToTensor()),
    "target_transform": lambda f: ImageFolder(f, ToTensor(), target_transform=lambda k: 2 - k),
    "subclass": lambda f: Mapped(f, ToTensor()),
    "wrapper": lambda f: Reversed(ImageFolder(f, ToTensor())),
    "edited samples": edited,
    "subset": lambda f: Subset(ImageFolder(f, ToTensor()), [4, 0, 2]),
    "concatenation": lambda f: ConcatDataset([Mapped(f, ToTensor()), ImageFolder(f, ToTensor())]),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_labels_are_those_of_the_items(folder: Path, make: Any) -> None:
    source = make(folder)
    dataset = from_torch(source)
    items = [source[i] for i in range(len(source))]
    assert dataset.labels.tolist() == [label for _, label in items]
    assert torch.equal(dataset.batch(range(len(source))), torch.stack([x for x, _ in items]))


def test_names_of_classes_go_with_their_labels(folder: Path) -> None:
    names = {name: from_torch(make(folder)).class_names for name, make in SOURCES.items()}
    assert names["as it is"] == names["subset"] == ("a", "b", "c")
    assert names["target_transform"] == names["subclass"] == names["wrapper"] == ("0", "1", "2")


def test_pil_items_are_read_as_files_are(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 255, 51, 0])
    deep = Image.fromarray(np.full((4, 4), 13107, np.uint16))
    for image, expected in (
        (palette, [1, 0.2, 0]),
        (Image.new("RGBA", (4, 4), (255, 51, 0, 9)), [1, 0.2, 0]),
        (deep, [0.2]),
        (Image.new("LA", (4, 4), (51, 9)), [0.2]),
        (Image.new("1", (4, 4), 1), [1]),
    ):
        pixels = from_torch([(image, 0), (image, 1)]).batch([1])[0, :, 0, 0]
        assert pixels.tolist() == pytest.approx(expected)
    with pytest.raises(DataError, match="sample 0: 32-bit integers"):
        from_torch([(Image.new("I", (4, 4), 300), 0)] * 2)


class Noisy(Dataset[Any]):
    """Changes what ``changed`` says at every reading."""

    def __init__(self, changed: str, chance: float = 0.5) -> None:
        self.changed, self.chance = changed, chance

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> Any:
        moved = self.changed == "image" and float(torch.rand(())) < self.chance
        image = torch.roll(INPUTS[index], 1, 2) if moved else INPUTS[index]
        shift = int(torch.randint(0, 10, ())) if self.changed == "label" else 0
        return image, (int(LABELS[index]) + shift) % 10


class NoisyStream(IterableDataset[Any]):
    def __init__(self, shuffled: bool) -> None:
        self.shuffled = shuffled

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(40).tolist() if self.shuffled else range(40)
        for i in order:
            yield INPUTS[i] if self.shuffled else torch.rand(1, 4, 4), int(LABELS[i])


class OneUse(IterableDataset[Any]):
    def __init__(self) -> None:
        self.items = iter(list(zip(INPUTS, LABELS, strict=True)))

    def __iter__(self) -> Iterator[Any]:
        return self.items


CHANGING: dict[str, Any] = {
    "image": lambda: Noisy("image"),
    "few images": lambda: Noisy("image", 0.1),
    "label": lambda: Noisy("label"),
    "loader": lambda: DataLoader(Noisy("image"), 8),
    "stream": lambda: NoisyStream(False),
    "shuffled stream": lambda: NoisyStream(True),
    "stream of one use": OneUse,
}


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING)
def test_what_changes_from_reading_to_reading_does_not_start(make: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(DataError, match=r"when it is read again|its label is .*, and was"):
        load_samples(Request(dataset=make()))


def test_no_attack_on_samples_that_change(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10))
    with pytest.raises(DataError, match="random augmentation"):
        robench.evaluate(
            network,
            Noisy("image"),
            "quick",
            threat_model="Linf-0.1",
            input={"channels": 1},
            num_classes=10,
            results=tmp_path / "r",
        )
    assert not list((tmp_path / "r").rglob("*.parquet"))


class OwnSet(robench.datasets.Dataset):
    """A data set of a user's, whose readings differ."""

    def _read(self, indices: list[int]) -> torch.Tensor:
        return torch.rand(len(indices), 1, 4, 4)


def test_data_sets_of_ones_own_are_read_twice_too() -> None:
    own = OwnSet(
        name="own",
        split="test",
        sample_ids=[str(i) for i in range(40)],
        labels=LABELS,
        class_names=list("0123456789"),
        input_shape=(1, 4, 4),
    )
    with pytest.raises(DataError, match=r"own \(test\): a sample that is read again"):
        load_samples(Request(dataset=own, n=5))


def test_nothing_but_what_is_needed_is_read(folder: Path) -> None:
    read: list[int] = []

    class Counting(ImageFolder):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    plain = ImageFolder(folder, ToTensor())
    assert from_torch(plain).labels.tolist() == plain.targets
    from_torch(Counting(folder, ToTensor()))
    assert sorted(read) == sorted([0, 1, *range(6)]), "labels once, images up to a bright one"


def test_sources_that_are_none() -> None:
    for source in (7, None, iter([])):
        with pytest.raises(UsageError, match="is no data set"):
            from_torch(source)
    with pytest.raises(DataError, match="no labels among the arrays"):
        from_torch({"inputs": INPUTS})
    with pytest.raises(DataError, match=r"an image of shape \(20, 1, 4, 4\)"):
        from_torch(list(DataLoader(DATA, 20)))
    with pytest.raises(DataError, match=r"not \(image, label\)"):
        from_torch([{"image": INPUTS[0], "label": 0}])


def test_lists_of_inputs_beside_their_labels() -> None:
    one = from_torch(([*INPUTS], LABELS.tolist()))
    for pair in (
        [list(INPUTS), list(LABELS)],
        (tuple(INPUTS.numpy()), LABELS.numpy()),
        (INPUTS.tolist(), LABELS),
        ([image[0] for image in INPUTS], LABELS),
    ):
        assert from_torch(pair).fingerprint == one.fingerprint
    assert torch.equal(one.batch(range(40)), INPUTS)
    assert one.labels.tolist() == LABELS.tolist()


def test_two_of_a_kind_are_told_apart() -> None:
    (x, y), (k, m) = INPUTS[:2], LABELS[:2]
    samples = from_torch([(x, int(k)), (y, int(m))])
    assert from_torch(([x, y], [k, m])).labels.tolist() == samples.labels.tolist() == [0, 1]
    assert torch.equal(from_torch(([x, y], [k, m])).batch([1]), samples.batch([1]))


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (([INPUTS[0], INPUTS[1, :, :2]], [0, 1]), "'inputs' are of several shapes or types"),
        (([np.zeros((2, 2, 3)), np.zeros((3, 3, 3))], [0, 1]), "'inputs' are of several shapes"),
        (([*INPUTS], [0, 1]), "40 samples but labels|40 inputs|2 labels"),
        (([], []), "the data set is empty"),
        (([Image.new("L", (2, 2))] * 3, [0, 1]), "3 images and 2 labels"),
        ({"inputs": [Image.new("P", (2, 2))] * 2, "labels": [0, 1]}, r"a list of \(image, label\)"),
    ],
)
def test_lists_that_do_not_fit_are_refused_with_the_reason(pair: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_torch(pair)


def test_a_list_of_images_is_read_as_files_are() -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 255, 0, 51])
    dataset = from_torch(([palette, Image.new("RGB", (2, 2), (0, 255, 0))], [1, 0]))
    assert dataset.batch([0])[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert dataset.labels.tolist() == [1, 0]


class Doubled(Subset[Any]):
    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return image / (1 + index), label

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


HALF = Subset(DATA, range(20))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Subset(DATA, [5, 5, 1]), "items 0 and 1 are the same sample, 5 of what the Subset"),
        (Subset(DATA, [-1, 39, 1]), "items 0 and 1 are the same sample, 39 of"),
        (Subset(DATA, torch.tensor([3, 1, 3])), "items 0 and 2"),
        (ConcatDataset([DATA, DATA]), "items 0 and 40 are the same sample, 0 of what the ConcatD"),
        (ConcatDataset([HALF, Subset(DATA, [30, 7])]), "items 7 and 21 are the same sample, 7 of"),
        (Subset(ConcatDataset([HALF, Subset(HALF, [3])]), [20, 3]), "items 0 and 1 are the same"),
        (DataLoader(ConcatDataset([DATA, DATA]), 8), "items 0 and 40"),
    ],
)
def test_a_sample_does_not_count_twice(source: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_torch(source)


def test_equal_samples_and_what_is_made_of_one_are_samples_of_their_own() -> None:
    equal = from_torch((INPUTS[[0, 0, 1]], LABELS[:3]))
    assert len(equal) == 3
    assert len(from_torch(ConcatDataset([HALF, Subset(DATA, range(20, 40))]))) == 40
    assert len(from_torch(Doubled(DATA, [5, 5, 1]))) == 3
    assert len(from_torch(TensorDataset(INPUTS[[5, 5, 1]], LABELS[[5, 5, 1]]))) == 3


class Called:
    """Samples whose labels are texts: z, m, a, z, … with the indices 0, 1, 2."""

    def __init__(self, numbers: bool = False, **said: Any) -> None:
        self.__dict__ |= said
        self.numbers = numbers

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        if index >= 6:
            raise IndexError
        return INPUTS[index], index % 3 if self.numbers else "zma"[index % 3]


PLACES = {"a": 2, "m": 1, "z": 0}


@pytest.mark.parametrize(
    "source",
    [
        Called(classes=PLACES),
        Called(classes={2: "a", 0: "z", 1: "m"}),
        Called(class_to_idx=PLACES),
        Called(classes=["a", "m", "z"], class_to_idx=PLACES),
        Called(classes=["z", "m", "a"], class_to_idx={"z": 0, "m": 1, "a": 2, "zed": 0}),
        Called(classes=[*"amz"], class_to_idx=PLACES, numbers=True),
        Subset(Called(classes=PLACES), range(6)),
        ConcatDataset([Subset(Called(classes=PLACES), [i]) for i in range(6)]),
        DataLoader(Called(classes=PLACES), 4, collate_fn=lambda items: default_collate(items)),
    ],
)
def test_indices_of_classes_count_and_not_the_order_of_writing(source: Any) -> None:
    found = from_torch(source)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.class_names == ("z", "m", "a")
    assert from_torch(source, num_classes=np.int64(3)).labels.tolist() == found.labels.tolist()


@pytest.mark.parametrize("given", [PLACES, ["z", "m", "a"], (c for c in "zma"), "z,m,a"])
def test_names_of_classes_that_are_given_in_any_form(given: Any) -> None:
    found = from_torch(Called(), class_names=given)
    assert (found.labels.tolist(), found.class_names) == ([0, 1, 2, 0, 1, 2], ("z", "m", "a"))
    pair = from_torch((INPUTS[:3], ["z", "m", "a"]), class_names=PLACES)
    assert pair.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Called(classes={"a": 1, "m": 2, "z": 3}), "not 0 to 2, each once: 1, 2, 3"),
        (Called(class_to_idx={"a": 0, "m": 0, "z": 1}), "not 0 to 2, each once: 0, 0, 1"),
        (Called(classes={"a": "first", "m": "second", "z": "third"}), "not 0 to 2"),
        (Called(classes={"a", "m", "z"}), "a set, which has no order"),
        (ConcatDataset([Called(classes=["a", "m", "z"]), Called(classes=PLACES)]), "parts"),
    ],
)
def test_names_of_classes_without_an_order_are_refused(source: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_torch(source)
