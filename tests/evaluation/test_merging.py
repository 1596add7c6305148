"""A leaderboard from parts of the samples is that of one process, and bad parts are refused.

The networks' arithmetic is exact, so every comparison is bit for bit.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

from robench.datasets import ArrayDataset
from robench.errors import ModelError
from robench.evaluation.merging import merge_all
from robench.evaluation.parts import POSITIONS, part_rows
from robench.evaluation.prepared_model import Examination, Settings
from robench.evaluation.runner import evaluate_model
from robench.models import wrap_module
from robench.models.loading import make_unique
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.request import Part
from robench.results import Store
from robench.results.bounds import known_bounds
from robench.results.parts import divisions, part_store
from robench.threat_models import ThreatModel

N = 18
THREAT = ThreatModel.of("Linf", "0.02")
STAGES = (
    AttackSpec(name="apgd-ce", attack="apgd", params={"loss": "ce", "steps": 4}),
    AttackSpec(
        name="apgd-t", attack="apgd", params={"loss": "dlr-targeted", "steps": 4, "targets": 3}
    ),
    AttackSpec(name="fab-t", attack="fab", params={"steps": 2, "targets": 3}),
    AttackSpec(name="square", attack="square", params={"queries": 8}),
)
SUITE = Suite(
    name="like-standard",
    attacks=(
        AttackSpec(name="fmn", attack="fmn", params={"steps": 3}),
        AttackSpec(  # begins at samples of all the set
            name="hop", attack="hop-skip-jump", params={"steps": 1, "draws": 8, "most_draws": 8}
        ),
        AttackSpec(name="autoattack", stages=STAGES),
    ),
)
PGD = Suite(
    name="pgd-alone",
    attacks=tuple(
        AttackSpec(name=f"pgd-{steps}", attack="pgd", params={"steps": steps}) for steps in (1, 2)
    ),
)


class WithFeatures(ExactNetwork):
    """The same, with a layer whose input are features: whole numbers of exact arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(24, 6, bias=False, dtype=torch.float64)
        self.last.weight = nn.Parameter(self.second.T.clone(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = (inputs.flatten(1).double() @ self.first - self.shift).float().relu()
        out: Tensor = self.last(hidden.double())
        return out.float()


def wrapped(network: nn.Module) -> RobenchModel:
    return wrap_module(
        network, num_classes=6, input={"channels": 1}, threat_model=THREAT, name="net"
    )


class Problem:
    """A network on a data set, and what the doctor saw of it."""

    def __init__(self) -> None:
        inputs = images(N, seed=1)
        labels = predictions(ExactNetwork(), inputs)
        labels[::9] = 0  # some are misclassified
        self.data = ArrayDataset(inputs, labels, num_classes=6)
        self.model = wrapped(WithFeatures())
        self.seen = Examination()

    def run(self, folder: Path, part: Part | None = None, **given: Any) -> Store:
        options: dict[str, Any] = {"precision": "fp32", "batch_size": 64, "workers": 1}
        settings = Settings(**(options | given.pop("settings", {})))
        suite = given.pop("suite", SUITE)
        evaluate_model(
            self.model,
            self.data,
            suite,
            store=Store(folder),
            settings=settings,
            examination=self.seen,
            part=part,
            **given,
        )
        return Store(folder)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


@pytest.fixture(scope="module")
def whole(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Store:
    settings = {"save_adversarial": True}
    return problem.run(tmp_path_factory.mktemp("whole"), settings=settings)


@pytest.fixture(scope="module")
def halves(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """Two short jobs, each of two parts in a folder of its own."""
    return [
        problem.run(tmp_path_factory.mktemp("half"), Part(index, 2), suite=PGD) for index in (1, 2)
    ]


@pytest.fixture(scope="module")
def thirds(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """Each of three parts in a folder of its own."""
    settings = {"save_adversarial": True}
    return [
        problem.run(tmp_path_factory.mktemp("part"), Part(index, 3), settings=settings)
        for index in (1, 2, 3)
    ]


def board(store: Store) -> bytes:
    records = list(store.records())
    frame = build_leaderboard(records, known=records, bounds=known_bounds(store))
    return leaderboard_csv(frame.drop(columns=["forwards", "backwards", "seconds"]))


def told(store: Store, key: str) -> dict[str, Any]:
    """A record as its file has it, without what time, memory and the state of batches decide."""
    record = json.loads(store.path_of(key).read_text())["record"]
    del record["created"], record["cost"], record["environment"]["precision_reason"]
    for stage in record["stages"]:
        del stage["seconds"], stage["forwards"], stage["backwards"]
    return record


def assert_same(one: Store, other: Store) -> None:
    """The records, and then their leaderboard."""
    assert len(other.keys()) == len(SUITE.attacks)
    spent = ["forwards", "backwards"]
    for key in other.keys():  # noqa: SIM118
        assert told(one, key) == told(other, key)
        mine, theirs = (store.read(key).table.drop(columns=spent) for store in (one, other))
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
        assert_same_arrays(one, other, key)
    assert board(one) == board(other)


def assert_same_arrays(one: Store, other: Store, key: str) -> None:
    mine, theirs = one.read_arrays(key), other.read_arrays(key)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.tobytes() == theirs[name].tobytes(), name


def merged(stores: Sequence[Store], folder: Path) -> Store:
    joined, problems = merge_all(stores, Store(folder))
    assert problems == []
    assert joined
    return Store(folder)


@pytest.mark.slow
def test_two_forks_make_the_same_leaderboard(problem, whole, tmp_path):
    forked = problem.run(tmp_path, settings={"workers": 2})
    assert_same(whole, forked)


@pytest.mark.parametrize("count", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_parts_in_any_order_make_the_same_leaderboard(problem, whole, tmp_path, count):
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    for index in order:
        problem.run(tmp_path, Part(index, count))
    assert_same(whole, merged([Store(tmp_path)], tmp_path))


def test_parts_of_several_folders_keep_their_adversarial_inputs(whole, thirds, tmp_path):
    store = merged([thirds[2], thirds[0], thirds[1]], tmp_path)
    assert_same(whole, store)
    for key in whole.keys():  # noqa: SIM118
        mine, theirs = (s.adversarial_rows(key)[:] for s in (whole, store))
        assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("rule", ["all", "3", pytest.param("next", marks=pytest.mark.slow)])
def test_parts_of_targeted_attacks(problem, tmp_path, rule):
    given = {"suite": PGD, "threat_model": THREAT.aimed_at(rule)}
    whole = problem.run(tmp_path / "whole", **given)
    for index in (2, 1):
        problem.run(tmp_path / "parts", Part(index, 2), **given)
    store = merged([Store(tmp_path / "parts")], tmp_path / "out")
    for key in whole.keys():  # noqa: SIM118
        assert told(whole, key) == told(store, key)


class Refuses(WithFeatures):
    """Fails under gradients where the first pixel is dark."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.requires_grad and (at := inputs[:, 0, 0, 0].min()) < 0.5:
            raise RuntimeError(f"dark: {float(at):.1f}")
        return super().forward(inputs)


def test_parts_of_a_model_that_fails_say_so_as_the_whole_does(tmp_path):
    given = Problem()
    given.model = wrapped(Refuses())
    asked = {"suite": PGD}
    one = given.run(tmp_path / "one", **asked)
    parts = [given.run(tmp_path / str(k), Part(k, 2), **asked) for k in (1, 2)]
    joined = merged(parts, tmp_path / "joined")
    for key in one.keys():  # noqa: SIM118
        flags = one.read(key).record.flags
        assert joined.read(key).record.flags == flags
        (said,) = [flag for flag in flags if flag.name == "errored_samples"]
        assert 2 < (said.count or 0) < N


def test_every_sample_is_in_one_part(problem):
    ids = problem.data.sample_ids
    parts = [part_rows(ids, Part(index, 7)) for index in range(1, 8)]
    assert sorted(row for part in parts for row in part) == list(range(N))
    assert {len(part) for part in parts} == {2, 3}
    assert parts[3] == part_rows(list(ids), Part(4, 7))


def test_a_part_never_answers_for_the_whole(halves):
    assert halves[0].keys() == []
    assert build_leaderboard(list(halves[0].records())).empty
    kept = set(part_store(halves[0], Part(1, 2)).keys())
    assert len(kept) == 2
    assert not {division.whole for division in divisions(halves)} & kept


def copied(stores: Sequence[Store], folder: Path) -> list[Store]:
    return [
        Store(shutil.copytree(store.folder, folder / f"{number}"))
        for number, store in enumerate(stores)
    ]


def test_what_is_missing_is_named_and_the_rest_is_joined(halves, tmp_path):
    one, two = copied(halves, tmp_path)
    home = part_store(two, Part(2, 2))
    home.path_of(home.keys()[0]).unlink()
    joined, problems = merge_all([one, two], Store(tmp_path / "out"))
    assert len(joined) == 1
    assert len(problems) == 1
    assert "part 2 of 2 is missing" in str(problems[0])
    assert "--shard 2/2" in str(problems[0])


def test_a_part_that_is_there_twice_is_named(halves, tmp_path):
    (copy,) = copied(halves[:1], tmp_path)
    joined, problems = merge_all([*halves, copy], Store(tmp_path / "out"))
    assert joined == []
    assert "part 1 of 2 is there twice" in str(problems[0])
    assert str(copy.folder) in str(problems[0])
    assert merged([*halves, halves[0]], tmp_path / "again").keys()  # one folder, named twice


def test_parts_of_another_seed_are_named(problem, halves, tmp_path):
    settings = {"seed": 5}
    other = problem.run(tmp_path / "seed", Part(2, 2), suite=PGD, settings=settings)
    joined, problems = merge_all([halves[0], other], Store(tmp_path / "out"))
    assert joined == []
    assert Store(tmp_path / "out").keys() == []
    assert all("missing" in str(found) for found in problems)
    assert any("differs in seed: 0 and 5" in str(found) for found in problems)


def made_otherwise(halves: list[Store], folder: Path, **arrays: Any) -> list[Store]:
    """Copies, the second half with another environment or with other arrays."""
    change = arrays.pop("environment", {})
    one, two = copied(halves, folder)
    home = part_store(two, Part(2, 2))
    for key in home.keys():  # noqa: SIM118
        kept = home.read(key)
        environment = kept.record.environment.model_copy(update=change)
        record = kept.record.model_copy(update={"environment": environment})
        home.write(record, kept.samples, arrays=home.read_arrays(key) | arrays)
    return [one, two]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"environment": {"versions": {"robench": "0.0.1"}}}, "another robench, 0.0.1"),
        ({"environment": {"precision": "bf16"}}, "another precision, bf16"),
        ({POSITIONS: np.arange(9)}, "not each of 18 once"),
        ({POSITIONS: np.arange(3)}, "does not say which samples"),
    ],
)
def test_parts_that_were_made_otherwise_are_named(halves, tmp_path, change, words):
    stores = made_otherwise(halves, tmp_path, **change)
    joined, problems = merge_all(stores, Store(tmp_path / "out"))
    assert joined == []
    assert words in str(problems[0])
    assert not (tmp_path / "out").exists()


def test_samples_of_other_parts_are_named(halves, tmp_path):
    """Two parts that make a whole, and have changed their names."""
    for division in divisions(halves):
        first, second = division.parts
        for part, other in ((first, second), (second, first)):
            record = part.stored.record.model_copy(
                update={
                    "key": other.of.key,
                    "part": part.of.model_copy(update={"index": other.of.index}),
                }
            )
            home = part_store(Store(tmp_path), Part(other.of.index, 2))
            arrays = part.store.read_arrays(part.of.key)
            home.write(record, part.stored.samples, arrays=arrays)
    _, problems = merge_all([Store(tmp_path)], Store(tmp_path / "out"))
    assert "part 1 of 2 holds samples of other parts" in str(problems[0])


class Noisy(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return flat[:, :6] + 0.1 * torch.rand(len(flat), 6)


def test_a_model_that_draws_at_random_is_refused(problem, tmp_path):
    noisy = wrap_module(Noisy(), num_classes=6, input={"channels": 1}, threat_model=THREAT)
    with pytest.raises(ModelError, match="randomised"):
        evaluate_model(noisy, problem.data, PGD, store=Store(tmp_path), part=Part(1, 2))
    assert list(tmp_path.rglob("*.json")) == []


def test_a_model_that_is_never_found_again_is_refused(problem, tmp_path):
    model = wrap_module(WithFeatures(), num_classes=6, input={"channels": 1}, threat_model=THREAT)
    make_unique(model, ["an attribute is a handle"])
    with pytest.raises(ModelError, match="not be joined"):
        evaluate_model(model, problem.data, PGD, store=Store(tmp_path), part=Part(1, 2))
