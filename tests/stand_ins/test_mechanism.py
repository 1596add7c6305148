"""What is searched in a model's place: where it is named, what it is built from, what it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_models import linear_problem
from mask_gallery.before_network import Detached
from torch import Tensor, nn

import robench
from robench.acceleration.search_models import SearchModel
from robench.attacks import ATTACKS, build_attack
from robench.attacks.suites import load_suite
from robench.datasets import ArrayDataset
from robench.errors import AttackError, UnknownNameError, UsageError
from robench.evaluation.cascade import Cascade
from robench.evaluation.cascade_state import CascadeState
from robench.evaluation.prepared_model import Settings, prepare_model
from robench.evaluation.runner import code_from_outside, key_of
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite
from robench.stand_ins.base import Setting
from robench.stand_ins.catalogue import STAND_INS
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

FGSM = {"steps": 1, "relative_step_size": 1.0, "random_start": False, "loss": "margin"}


def bare(setting: Setting) -> nn.Module:
    """The network within a :class:`Detached` one."""
    return setting.model.network.get_submodule("network")


class Unmasked:
    """Searches the network within a :class:`Detached` one, and notes what it was built from."""

    exact = True
    settings: list[Setting] = []  # noqa: RUF012

    def build(self, setting: Setting) -> SearchModel:
        self.settings.append(setting)
        return SearchModel(bare(setting), "the network within")

    def identity(self, model: RobenchModel) -> str | None:
        return "abc"


class Opposite(Unmasked):
    """A model of its own that is wrong about everything, in the right direction."""

    exact = False

    def build(self, setting: Setting) -> SearchModel:
        return SearchModel(Scaled(bare(setting)), "another model")


class Needless(Unmasked):
    def build(self, setting: Setting) -> SearchModel:
        raise AttackError("every gradient is faithful")


class Scaled(nn.Module):
    """The same slope; every label wins by a million."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        ahead = nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1])
        return logits + 1e6 * ahead


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in {"unmasked": Unmasked, "opposite": Opposite, "needless": Needless}.items():
        monkeypatch.setitem(STAND_INS._targets, name, target)
        monkeypatch.setitem(STAND_INS._summaries, name, "")
    Unmasked.settings.clear()


def entry(through: str | None, **fields: Any) -> AttackSpec:
    return AttackSpec(name="fgsm", attack="pgd", params=FGSM, through=through, **fields)


def problem() -> tuple[nn.Module, ArrayDataset, Tensor, str]:
    """A hidden linear network, its data, which samples can be broken, and a threat model's name."""
    model, inputs, labels, distance, threat = linear_problem("Linf", 2, count=24)
    data = ArrayDataset(inputs, labels, num_classes=2)
    return Detached(model), data, distance < threat.radius, f"Linf-{threat.radius}"


def evaluate(*specs: AttackSpec, **options: Any) -> list[Any]:
    model, data, _, threat = problem()
    return list(
        robench.evaluate(
            model,
            data,
            Suite(name="t", attacks=specs),
            threat_model=threat,
            device="cpu",
            precision="fp32",
            **options,
        )
    )


def broken(stored: Any) -> list[bool]:
    return [outcome == "broken" for outcome in stored.table["outcome"]]


@pytest.mark.parametrize("through", ["unmasked", "opposite"])
def test_it_is_searched_in_the_models_place_and_the_model_decides(through: str) -> None:
    breakable = problem()[2].tolist()
    assert 0 < sum(breakable) < 24
    plain, found = evaluate(entry(None), entry(through).model_copy(update={"name": "through"}))
    assert not any(broken(plain))
    assert broken(found) == breakable
    said = {"unmasked": "the network within", "opposite": "another model"}[through]
    assert [(s.search, s.attempted) for s in found.record.stages] == [(said, 24)]
    assert plain.record.stages == ()


def test_it_is_built_once_and_not_for_nobody() -> None:
    stages = tuple(entry("unmasked").model_copy(update={"name": n}) for n in "ab")
    evaluate(AttackSpec(name="two", stages=stages), entry("unmasked"))
    assert len(Unmasked.settings) == 1
    Unmasked.settings.clear()
    model, data, _, _ = problem()
    stages = (entry(None).model_copy(update={"name": "first"}), entry("unmasked"))
    spec = AttackSpec(name="late", stages=stages)
    stored = robench.evaluate(
        model.network,  # type: ignore[arg-type]
        data,
        Suite(name="t", attacks=(spec,)),
        threat_model="Linf-1",
        device="cpu",
        precision="fp32",
    )[0]
    assert [stage.attempted for stage in stored.record.stages] == [24, 0]
    assert Unmasked.settings == []


def test_what_it_is_built_from_is_the_samples_own_affair() -> None:
    network, data, _, threat = problem()
    model = wrap_module(network, num_classes=2, threat_model=threat)
    radius = ThreatModel.of("Linf", threat.removeprefix("Linf-"))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    shuffled = ArrayDataset(
        data.batch(order),
        data.labels[order],
        num_classes=2,
        sample_ids=[data.sample_ids[i] for i in order],
    )
    for dataset, size in ((data, 3), (shuffled, 7)):
        settings = Settings(batch_size=size, precision="fp32")
        prepare_model(model, dataset, radius, settings, ()).stand_in("unmasked")
    one, other = Unmasked.settings
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.labels, other.labels)
    assert (one.batch_size, other.batch_size) == (3, 7)
    prepared = prepare_model(model, data, radius, Settings(seed=1), ())
    prepared.stand_in("unmasked")
    assert not torch.equal(Unmasked.settings[-1].inputs, one.inputs)


def cascade(workers: int | None = None, loops: int = 1, **options: Any) -> Cascade:
    network, data, _, threat = problem()
    model = wrap_module(network, num_classes=2, threat_model=threat)
    further = (torch.device("cpu"),) * (loops - 1)
    settings = Settings(precision="fp32", batch_size=6, workers=workers, further_devices=further)
    prepared = prepare_model(model, data, model.summary.threat_model, settings, ())
    steps = entry("unmasked").model_copy(update={"params": {"steps": 3, "loss": "margin"}})
    return Cascade(steps, prepared, **options)


def same(one: CascadeState, other: CascadeState) -> bool:
    columns = ("adv_inputs", "stage", "margin", "forwards", "backwards")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in columns)


def test_workers_and_interruptions_change_nothing() -> None:
    inputs = torch.zeros(24, 1, 4, 4)
    whole = cascade().run(inputs.clone())
    assert 0 < int((whole.stage == 0).sum()) < 24
    for side_by_side in ({"workers": 2}, {"loops": 2}):
        Unmasked.settings.clear()
        shared = cascade(**side_by_side)
        assert shared.workers == 2
        assert same(whole, shared.run(inputs.clone()))
        assert len(Unmasked.settings) == 1  # before the workers were forked
    kept: list[Any] = []

    def interrupt(snapshot: Callable[[], dict[str, Any]]) -> None:
        kept.append(snapshot())
        if len(kept) == 3:
            raise KeyboardInterrupt

    room = inputs.clone()
    with pytest.raises(KeyboardInterrupt):
        cascade(save=interrupt).run(room)
    assert same(whole, cascade().run(room, kept[-1]))


def test_where_there_is_none_the_stage_is_left_out_with_the_reason() -> None:
    stages = (entry(None).model_copy(update={"name": "plain"}), entry("needless"))
    (stored,) = evaluate(AttackSpec(name="two", stages=stages))
    assert stored.record.stages[1].skipped == "every gradient is faithful"
    assert any(flag.name == "stage_skipped" for flag in stored.record.flags)
    with pytest.raises(AttackError, match="every gradient is faithful"):
        evaluate(entry("needless"))


def test_unknown_names_and_wrong_arguments_are_refused_before_anything_is_run() -> None:
    with pytest.raises(UnknownNameError, match="smoothd") as error:
        evaluate(entry("smoothd"))
    assert "smoothed" in str(error.value.hint)
    with pytest.raises(UsageError, match="takes no argument 'x'"):
        evaluate(entry("smoothed:x"))


class Foreign:
    """An attack with a loop of its own."""

    def __init__(self, threat_model: ThreatModel, name: str) -> None:
        self.threat_model, self.name = threat_model, name

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        return inputs


def test_it_takes_the_place_of_one_model_and_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="say each what they go through"):
        AttackSpec(name="a", through="smoothed", stages=(entry(None),))
    with pytest.raises(ValueError, match="no output of that name"):
        entry("smoothed", output="aux")
    monkeypatch.setitem(ATTACKS._targets, "foreign", Foreign)
    foreign = AttackSpec(name="a", attack="foreign", through="smoothed")
    with pytest.raises(AttackError, match="makes its own passes"):
        build_attack(foreign, ThreatModel.of("Linf", "0.1"))


def test_the_key_knows_what_is_searched() -> None:
    network, data, _, threat = problem()
    model = wrap_module(network, num_classes=2, threat_model=threat)
    assert "through" not in entry(None).identity
    assert entry("smoothed").identity["through"] == "smoothed"
    keys = {
        key_of(model, data.spec(), model.summary.threat_model, entry(through), Settings())
        for through in (None, "smoothed", "unmasked")
    }
    assert len(keys) == 3
    assert code_from_outside(entry("smoothed"), model) == {}
    assert code_from_outside(entry("unmasked"), model)["unmasked"].endswith(" abc")


def test_a_file_may_name_one_but_code_only_with_trust(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = '[[attacks]]\nname = "a"\nattack = "pgd"\nthrough = "{}"\n'
    file.write_text(text.format("model:pgd-at"))
    assert load_suite(file).attacks[0].through == "model:pgd-at"
    file.write_text(text.format("my_package.mine:Thing"))
    with pytest.raises(UsageError, match="is code that would be imported"):
        load_suite(file)
    assert load_suite(file, trust_code=True).attacks[0].through == "my_package.mine:Thing"
