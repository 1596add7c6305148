"""Training: same seed same weights, resuming, choosing, refusing."""

from __future__ import annotations

import hashlib
import inspect
import math
import multiprocessing
import signal
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from robench import seeding
from robench.datasets import ArrayDataset, hold_out, load_training_splits
from robench.defenses import (
    RECIPES,
    Batch,
    Context,
    Recipe,
    TrainingJob,
    TrainingSettings,
    TrainingSplits,
    resolve,
    train,
    validate,
)
from robench.defenses.computation import deterministic, launch
from robench.defenses.recipes.cross_entropy import Standard
from robench.defenses.settings import defaults_for
from robench.defenses.training_data import TrainingData, shift_and_flip
from robench.defenses.training_state import STATE_FILE, TrainingState
from robench.devices import resolve_device
from robench.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    MissingDependencyError,
    StoreError,
    TrainingError,
    UnknownNameError,
    UsageError,
)
from robench.models import load_model, read_card
from robench.records import ArchitectureSpec
from robench.threat_models import ThreatModel

TINY = ArchitectureSpec(name="digits_resnet", arguments={"width": 4})
CPU = torch.device("cpu")


def bars(n: int = 60) -> ArrayDataset:
    """Images of a bright row or a bright column: two classes that are easy to tell apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = 0.3 * torch.rand(n, 1, 5, 5, generator=generator)
    for i in range(n):
        place = (i // 2) % 5
        if i % 2:
            inputs[i, 0, :, place] = 0.9
        else:
            inputs[i, 0, place, :] = 0.9
    return ArrayDataset(inputs, torch.arange(n) % 2, name="bars", split="train", num_classes=2)


def job(folder: Path, recipe: str | Recipe = "pgd-at", **changes: Any) -> TrainingJob:
    arguments: dict[str, Any] = {
        "data": TrainingSplits(*hold_out(bars(), 12)),
        "architecture": TINY,
        "threat_model": "Linf-0.1",
        "folder": folder,
        "device": "cpu",
    }
    arguments |= {k: changes.pop(k) for k in set(ARGUMENTS) & set(changes)}
    settings = {"epochs": 3, "batch_size": 16, **changes}
    kind = RECIPES[recipe] if isinstance(recipe, str) else type(recipe)
    if "attack_steps" in kind.model_fields:
        settings.setdefault("attack_steps", 2)
    return resolve(recipe, **arguments, settings=settings)


ARGUMENTS = inspect.signature(resolve).parameters


def run(
    folder: Path, recipe: str | Recipe = "pgd-at", *, overwrite: bool = False, **changes: Any
) -> Path:
    return train(job(folder, recipe, **changes), overwrite=overwrite, progress=False)


def weights(card: Path) -> dict[str, Tensor]:
    return load_file(card.parent / "weights.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the product ---------------------------------------------------------------------------


def test_a_card_that_loads_and_says_everything(tmp_path: Path) -> None:
    path = run(tmp_path / "m", epochs=10)
    card = read_card(path)
    content = (path.parent / "weights.safetensors").read_bytes()
    assert card.weights.sha256 == hashlib.sha256(content).hexdigest()
    assert (card.defense, card.dataset, card.num_classes) == ("pgd-at", "bars", 2)
    assert card.threat_model == ThreatModel.of("Linf", "0.1")
    assert card.architecture == TINY
    origin = card.provenance
    assert (origin.seed, origin.epochs) == (0, 10)
    assert origin.recipe["attack_steps"] == 2
    assert origin.recipe["lr"] == 0.1
    assert origin.recipe["threads"] == torch.get_num_threads()
    assert origin.versions["torch"] == version("torch")
    assert origin.training_data is not None
    assert hold_out(bars(), 12)[0].fingerprint in origin.training_data
    assert origin.year == 2018
    assert sorted(p.name for p in path.parent.iterdir()) == ["card.toml", "weights.safetensors"]

    model = load_model(path)
    data = bars()
    accuracy = (model(data.batch(range(60))).argmax(1) == data.labels).float().mean()
    assert accuracy > 0.9, "it has learnt its training data"
    figures = validate(
        model, hold_out(data, 12)[1], card.threat_model, seed=0, steps=10, device=CPU
    )
    assert figures["clean_acc"] == pytest.approx(origin.validation["clean_acc"], abs=0.01)
    assert figures["robust_acc"] == pytest.approx(origin.validation["robust_acc"], abs=0.01)


def test_the_command_names_all_that_differs_from_the_defaults(tmp_path: Path) -> None:
    settings = {
        "epochs": 1,
        "attack_steps": 1,
        "beta": 3,
        "ema": 0.5,
        "batch_size": 1000,
        "threads": 1,
    }
    path = run(
        tmp_path,
        "trades",
        data="digits",
        threat_model=None,
        seed=7,
        **settings,
    )
    assert read_card(path).provenance.command == (
        "robench train trades --dataset digits --arch digits_resnet --arch-arg width=4 "
        "--threat-model Linf-0.2 --epochs 1 --seed 7 --set batch_size=1000 --set ema=0.5 "
        "--set threads=1 --set attack_steps=1 --set beta=3.0"
    )


@pytest.mark.parametrize("name", ["standard", "trades", "mart", "aerp"])
def test_every_recipe_trains(name: str, tmp_path: Path) -> None:
    card = read_card(run(tmp_path, name, epochs=1))
    assert card.defense == name
    assert load_model(tmp_path)(bars().batch([0])).shape == (1, 2)


def test_ancra_s_card_names_its_auxiliary_outputs(tmp_path: Path) -> None:
    spec = ArchitectureSpec(name="digits_resnet_ra", arguments={"width": 4})
    card = read_card(run(tmp_path, "ancra", epochs=1, architecture=spec))
    assert card.forward.outputs == {"auxiliary_0": (1, 0)}
    assert card.provenance.notes is not None
    assert "Suspect" in card.provenance.notes
    model = load_model(tmp_path)
    inputs = bars().batch(range(4))
    final, auxiliary = model(inputs), model.with_output("auxiliary_0")(inputs)
    assert final.shape == auxiliary.shape == (4, 2)
    assert not torch.equal(final, auxiliary)


def test_a_student_starts_from_its_teacher(tmp_path: Path) -> None:
    teacher = run(tmp_path / "teacher", "standard")
    student = run(tmp_path / "student", "agkd-bml", epochs=1, teacher=teacher, lr=1e-12)
    card = read_card(student)
    assert card.provenance.recipe["teacher_sha256"] == read_card(teacher).weights.sha256
    old, new = weights(teacher), weights(student)
    for name, value in old.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(value, new[name], atol=1e-6), name


def test_the_teacher_must_be_given_and_fit(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"robench train standard --dataset bars .*--teacher"):
        run(tmp_path / "x", "agkd-bml")
    teacher = run(tmp_path / "teacher", "standard", epochs=1)
    wider = ArchitectureSpec(name="digits_resnet", arguments={"width": 5})
    with pytest.raises(TrainingError, match="same architecture"):
        run(tmp_path / "y", "agkd-bml", teacher=teacher, architecture=wider)
    with pytest.raises(UsageError, match="takes no teacher"):
        run(tmp_path / "z", "pgd-at", teacher=teacher)


# --- reproducibility -----------------------------------------------------------------------


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    first = weights(run(tmp_path / "a", shift=1, flip=True, ema=0.9))
    torch.manual_seed(99)
    torch.rand(5)
    state = torch.random.get_rng_state()
    again = weights(run(tmp_path / "b", shift=1, flip=True, ema=0.9))
    assert same(first, again)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator is untouched"
    assert not same(first, weights(run(tmp_path / "c", shift=1, flip=True, ema=0.9, seed=1)))


class InterruptedRunError(Exception):
    pass


@pytest.mark.parametrize(("ema", "stop"), [(0.0, 1), (0.9, 2)])
def test_resuming_after_any_epoch_gives_the_same_weights(
    ema: float, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", ema=ema, seed=stop)
    save = TrainingState.save

    def save_and_die(self: TrainingState, folder: Path) -> None:
        save(self, folder)
        if self.epoch == stop:
            raise InterruptedRunError

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_and_die)
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "broken", ema=ema, seed=stop)
    assert not (tmp_path / "broken" / "card.toml").exists()
    resumed = run(tmp_path / "broken", ema=ema, seed=stop)
    assert same(weights(whole), weights(resumed))
    assert read_card(whole).weights.sha256 == read_card(resumed).weights.sha256


def train_noise(folder: Path) -> Path:
    inputs = torch.rand(240, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    parts = hold_out(ArrayDataset(inputs, (inputs.mean((1, 2, 3)) > 0.5).long()), 48)
    return run(
        folder,
        data=TrainingSplits(*parts),
        epochs=8,
        batch_size=32,
        ema=0.9,
        shift=1,
        attack_steps=4,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_point_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    """kill -9 at two moments of one run, in the middle of an epoch; the third start finishes."""
    broken = tmp_path / "broken"
    state = broken / STATE_FILE
    for pause in (0.03, 0.11):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = multiprocessing.get_context("fork").Process(target=train_noise, args=(broken,))
        process.start()
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.is_alive():
            if state.exists() and state.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was still training"
        assert not (broken / "card.toml").exists()
    assert same(weights(train_noise(tmp_path / "whole")), weights(train_noise(broken)))
    left = {path.name for path in broken.iterdir()} - {"card.toml", "weights.safetensors"}
    assert all(name.endswith(".tmp") for name in left), "at most a torn temporary file"


def test_an_interrupted_run_resumes_only_with_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: TrainingState, folder: Path) -> None:
        save(self, folder)
        raise InterruptedRunError

    save = TrainingState.save
    monkeypatch.setattr(TrainingState, "save", die)
    with pytest.raises(InterruptedRunError):
        run(tmp_path)
    with pytest.raises(UsageError, match=r"other settings \(lr was 0\.1\)"):
        run(tmp_path, lr=0.2)
    (tmp_path / STATE_FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="--overwrite"):
        run(tmp_path)
    monkeypatch.undo()
    assert run(tmp_path, lr=0.2, overwrite=True).exists()


def test_a_finished_model_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = run(tmp_path, epochs=1)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="finished model"):
        run(tmp_path, epochs=1, seed=1)
    assert path.read_bytes() == before
    run(tmp_path, epochs=1, seed=1, overwrite=True)
    assert path.read_bytes() != before


def test_state_is_written_read_equal(tmp_path: Path) -> None:
    state = TrainingState(
        {"lr": "1"}, 2, {"w": torch.rand(2)}, {"state": {}, "param_groups": [{"lr": 0.1}]}
    )
    state.save(tmp_path)
    loaded = TrainingState.load(tmp_path, {"lr": "1"})
    assert loaded is not None
    assert torch.equal(loaded.network["w"], state.network["w"])
    assert (loaded.epoch, loaded.optimiser, loaded.best) == (2, state.optimiser, None)
    assert TrainingState.load(tmp_path / "nowhere", {}) is None


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        run(tmp_path / "file" / "model")


# --- choosing and stopping -----------------------------------------------------------------


class Diverging(Standard):
    name: ClassVar[str] = "diverging"
    after: int = 5

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        calls.append(1)
        (term,) = super().terms(context, batch).values()
        return {"clean": term * (math.nan if len(calls) > self.after else 1.0)}


calls: list[int] = []


def test_divergence_stops_with_the_step_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    calls.clear()
    # 48 samples in batches of 16: three steps an epoch, the sixth is the third of epoch 2.
    with pytest.raises(TrainingError, match="loss is nan at step 3 of epoch 2"):
        run(tmp_path, Diverging())
    card = read_card(tmp_path / "card.toml")
    assert card.provenance.validation["epoch"] == 1
    assert card.provenance.notes is not None
    assert "Training stopped: the loss is nan at step 3 of epoch 2" in card.provenance.notes
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "card.toml").values())


def test_divergence_before_the_first_epoch_leaves_no_card(tmp_path: Path) -> None:
    calls.clear()
    with pytest.raises(TrainingError, match="step 1 of epoch 1"):
        run(tmp_path, Diverging(after=0))
    assert not (tmp_path / "card.toml").exists()


def test_the_best_epoch_is_kept_and_ties_go_to_the_lower_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([(50.0, 1.0), (70.0, 2.0), (70.0, 1.5), (70.0, 1.6), (60.0, 0.1)])
    seen: list[dict[str, Tensor]] = []

    def judged(network: nn.Module, *_: Any, **__: Any) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        robust, loss = next(figures)
        return {"clean_acc": 90.0, "robust_acc": robust, "clean_loss": 0.1, "adv_loss": loss}

    monkeypatch.setattr("robench.defenses.training.validate", judged)
    path = run(tmp_path, epochs=5)
    assert read_card(path).provenance.validation["epoch"] == 3
    assert same(weights(path), seen[2])


def test_validation_can_be_rarer_but_never_misses_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count: list[int] = []

    def judged(*_: Any, **__: Any) -> dict[str, float]:
        count.append(1)
        return {"clean_acc": 0.0, "robust_acc": 0.0, "clean_loss": 1.0, "adv_loss": 1.0}

    monkeypatch.setattr("robench.defenses.training.validate", judged)
    run(tmp_path, epochs=5, validate_every=3)
    assert len(count) == 2


def test_validation_by_hand() -> None:
    """A network that answers by one pixel: its robustness at ε is known."""

    class OnePixel(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            value = inputs[:, 0, 0, 0] - 0.5
            return torch.stack([-value, value], dim=1)

    inputs = torch.tensor([0.1, 0.45, 0.55, 0.9]).view(4, 1, 1, 1)
    data = ArrayDataset(inputs, torch.tensor([0, 0, 0, 1]), num_classes=2)
    figures = validate(
        OnePixel(), data, ThreatModel.of("Linf", "0.2"), seed=0, steps=10, device=CPU
    )
    assert figures["clean_acc"] == 75.0
    assert figures["robust_acc"] == 50.0
    moved = torch.tensor([0.3, 0.65, 0.75, 0.7]) - 0.5
    logits = torch.stack([-moved, moved], dim=1)
    assert figures["adv_loss"] == pytest.approx(
        float(F.cross_entropy(logits, torch.tensor([0, 0, 0, 1]))), rel=1e-4
    )


# --- data and schedule ---------------------------------------------------------------------


def settings(**values: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(values)


def test_an_epoch_takes_every_sample_once_in_a_new_order() -> None:
    data = TrainingData(bars(), settings(batch_size=20), seed=0, device=CPU)
    orders = []
    for epoch in range(2):
        batches = list(data.batches(epoch))
        assert [len(b.labels) for b in batches] == [20, 20, 20]
        inputs = torch.cat([b.inputs for b in batches])
        orders.append(inputs.flatten(1).sum(1))
    everything = bars().batch(range(60)).flatten(1).sum(1)
    assert torch.equal(orders[0].sort().values, everything.sort().values)
    assert not torch.equal(orders[0], orders[1])


def test_processes_share_every_batch() -> None:
    data = TrainingData(bars(), settings(batch_size=20), seed=0, device=CPU)
    whole = next(data.batches(0))
    parts = [next(data.batches(0, rank, 2)) for rank in range(2)]
    merged = torch.stack([p.keys for p in parts], dim=1).flatten()
    assert torch.equal(merged, whole.keys)
    assert len(parts[0].labels) == 10


def test_streaming_gives_what_the_resident_set_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = TrainingData(bars(), settings(batch_size=20, shift=1), seed=0, device=CPU)
    monkeypatch.setattr("robench.defenses.training_data._RESIDENT_BYTES", 0)
    streamed = TrainingData(bars(), settings(batch_size=20, shift=1), seed=0, device=CPU)
    for a, b in zip(resident.batches(1), streamed.batches(1), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)


def test_draw_gives_samples_of_the_wanted_classes() -> None:
    dataset = bars()
    data = TrainingData(dataset, settings(batch_size=20), seed=0, device=CPU)
    wanted = torch.tensor([0, 1] * 50)
    drawn = data.draw(wanted, seeding.sample_keys(0, [str(i) for i in range(100)]))
    pixels = dataset.batch(range(60)).flatten(1)
    found = (drawn.flatten(1)[:, None] == pixels[None]).all(dim=2)
    assert found.any(dim=1).all()
    assert torch.equal(dataset.labels[found.float().argmax(dim=1)], wanted)
    assert len(set(found.float().argmax(dim=1).tolist())) > 30, "not always the same ones"


def test_shift_moves_each_image_as_a_whole() -> None:
    image = torch.zeros(200, 1, 5, 5)
    image[:, 0, 2, 2] = 1
    keys = seeding.sample_keys(0, [str(i) for i in range(200)])
    moved = shift_and_flip(image, keys, shift=2, flip=False)
    assert moved.flatten(1).sum(1).tolist() == [1.0] * 200
    places = moved.flatten(1).argmax(1)
    assert set(places.tolist()) == set(range(25)), "all 25 shifts occur"
    assert torch.equal(moved, shift_and_flip(image, keys, shift=2, flip=False))
    corner = torch.zeros(200, 1, 5, 5)
    corner[:, 0, 0, 0] = 1
    assert shift_and_flip(corner, keys, shift=2, flip=False).sum() < 200, "zeros come in"


def test_flip_mirrors_about_half() -> None:
    image = torch.arange(4.0).expand(400, 1, 1, 4)
    keys = seeding.sample_keys(0, [str(i) for i in range(400)])
    flipped = shift_and_flip(image, keys, shift=0, flip=True)
    mirrored = flipped[:, 0, 0, 0] == 3
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(flipped[mirrored], image[mirrored].flip(3))
    assert torch.equal(flipped[~mirrored], image[~mirrored])


def test_schedules() -> None:
    assert settings(schedule="constant", lr=3).lr_at(0.7) == 3
    steps = settings(schedule="steps", lr=1)
    assert [steps.lr_at(p) for p in (0.49, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])
    cosine = settings(schedule="cosine", lr=2)
    assert [cosine.lr_at(p) for p in (0, 0.5, 1)] == pytest.approx([2, 1, 0])
    cycle = settings(schedule="one-cycle", lr=1, warmup=0.2)
    assert cycle.lr_at(0) == pytest.approx(0.04)
    assert cycle.lr_at(0.2) == pytest.approx(1)
    assert cycle.lr_at(0.6) == pytest.approx(0.5)


def test_eps_grows_to_its_value() -> None:
    warm = settings(epochs=10, eps_warmup=0.4)
    shares = [float(warm.eps_share(epoch)) for epoch in range(10)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 6)
    assert settings().eps_share(0) == 1


def test_the_moving_average_is_an_average(tmp_path: Path) -> None:
    """With a decay near 1 the average lags behind, so the two must differ; 0 means none."""
    assert not same(weights(run(tmp_path / "a")), weights(run(tmp_path / "b", ema=0.9)))


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"recipe": "tradess"}, UnknownNameError, "Did you mean 'trades'"),
        ({"lrr": 0.1}, UnknownNameError, "unknown training setting of pgd-at 'lrr'"),
        ({"lr": -1}, UsageError, "lr: Input should be greater than 0"),
        ({"epochs": 0}, UsageError, "epochs: Input should be greater"),
        ({"attack_steps": 0}, UsageError, "attack_steps: Input should be greater"),
        ({"batch_size": 64}, TrainingError, "48 training samples do not fill a batch of 64"),
        ({"architecture": "digit_resnet"}, UnknownNameError, "digits_resnet"),
        ({"architecture": None}, UsageError, "no architecture is the default for 'bars'"),
        ({"threat_model": "Linf-2"}, UsageError, "at most 1"),
        ({"threat_model": "8/255"}, UsageError, "unknown norm|not a threat model"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99 is not there"),
        ({"device": "gpu"}, DeviceError, "unknown device"),
        ({"name": "my model"}, UsageError, "name: String should match pattern"),
        ({"devices": 0}, UsageError, "at least 1"),
        ({"data": "/nowhere/data.npz"}, DataError, "does not exist"),
    ],
)
def test_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    with pytest.raises(error, match=message):
        run(folder, **{"recipe": "pgd-at", **changes})
    assert not folder.exists(), "nothing is left behind"


def test_splits_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="share samples"):
        TrainingSplits(bars(), bars())
    other = ArrayDataset(torch.rand(2, 3, 5, 5), torch.arange(2), name="o", num_classes=2)
    with pytest.raises(UsageError, match="differ in classes or input shape"):
        TrainingSplits(bars(), other)


def test_several_devices_need_fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingDependencyError, match=r"robench\[distributed\]"):
        run(tmp_path, devices=2)


VIT = ArchitectureSpec(
    name="vit", arguments={"image_size": 5, "patch": 1, "width": 8, "depth": 1, "heads": 2}
)


@pytest.mark.filterwarnings("ignore")  # Fabric's own
@pytest.mark.parametrize(
    "start",
    [
        pytest.param("ddp_spawn", marks=pytest.mark.slow),
        pytest.param(
            "ddp_fork", marks=pytest.mark.skipif(sys.platform == "win32", reason="no forks")
        ),
    ],
)
def test_two_processes_train_what_one_does(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: averaged over two halves, gradients and statistics are the whole batch's."""
    # Forked, the processes are quicker to start than as robench starts them.
    import lightning_fabric

    started = partial(lightning_fabric.Fabric, strategy=start)
    monkeypatch.setattr(lightning_fabric, "Fabric", lambda strategy, **options: started(**options))
    options: dict[str, Any] = {
        "recipe": "standard",
        "architecture": "watching_network:WatchingNetwork",
        "epochs": 2,
        "batch_size": 48,
    }
    one = weights(run(tmp_path / "one", **options))
    two = weights(run(tmp_path / "two", devices=2, **options))
    assert one.keys() == two.keys()
    for name in ("head.weight", "head.bias", "watch.running_mean"):
        assert torch.allclose(one[name], two[name], atol=1e-6), name
    untrained = job(tmp_path / "start", **options).network.state_dict()
    for name in ("head.weight", "watch.running_mean"):
        assert not torch.allclose(one[name], untrained[name], atol=1e-3), name


def test_a_transformer_s_card_asks_for_rollout(tmp_path: Path) -> None:
    card = read_card(run(tmp_path, architecture=VIT, epochs=1))
    assert card.attention.method == "rollout"


def test_settings_of_torch_come_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic(CPU):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
    threads = torch.get_num_threads()
    with deterministic(CPU, threads + 1):
        assert torch.get_num_threads() == threads + 1
    with pytest.raises(InterruptedRunError), deterministic(CPU, threads + 1):
        raise InterruptedRunError
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == before


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    seen: list[int] = []
    launch(lambda processes: seen.append(processes.count), CPU, 1)
    assert seen == [1]


def test_defaults_are_data() -> None:
    assert defaults_for("digits").threat_model == "Linf-0.2"
    assert defaults_for("something-else").threat_model == "Linf-8/255"
    train_data, validation = load_training_splits("digits")
    assert len(train_data) + len(validation) == 1297


def test_the_bar_shows_losses_and_robustness(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from robench.defenses.training import TrainingProgress

    stream = StringIO()
    console = Console(file=stream, force_terminal=True, width=160)
    with TrainingProgress("pgd-at on bars", steps=6, done=3, console=console) as bar:
        for _ in range(3):
            bar.step_done()
        bar.epoch_done(2, {"loss_adversarial": 0.5, "clean_acc": 99.0, "robust_acc": 42.0})
    text = stream.getvalue()
    for expected in ("pgd-at on bars", "6/6", "epoch 2", "adversarial 0.500", "robust 42.0 %"):
        assert expected in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_in_either_precision(precision: str, tmp_path: Path) -> None:
    card = read_card(run(tmp_path / "a", device="cuda", precision=precision, epochs=10))
    assert card.provenance.recipe["precision"] == precision
    assert card.provenance.validation["clean_acc"] > 80
    assert load_model(tmp_path / "a")(bars().batch([0])).dtype == torch.float32
