"""What is attacked and towards what: the targets of rules, and what a record says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attack_models import ExactNetwork, images
from torch import Tensor

import robench
from robench import seeding
from robench.datasets import ArrayDataset
from robench.errors import UsageError
from robench.evaluation.aims import choose_aims, target_classes
from robench.inspection.verification import reverify
from robench.models import wrap_module
from robench.records import AttackSpec, Outcome, Suite, job_key
from robench.results import Store
from robench.threat_models import TARGET_RULES, ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

CLASSES, N = 6, 10
INPUTS = images(N, seed=3)
SUITE = Suite(
    name="small",
    attacks=(
        AttackSpec(name="pgd", attack="pgd", params={"steps": 3}),
        AttackSpec(
            name="both",
            stages=(
                AttackSpec(
                    name="apgd-t", attack="apgd", params={"steps": 4, "loss": "dlr-targeted"}
                ),
                AttackSpec(name="square", attack="square", params={"queries": 10}),
            ),
        ),
    ),
)


def data() -> ArrayDataset:
    """The network's own predictions for labels, all but three samples'."""
    with torch.no_grad():
        labels = ExactNetwork()(INPUTS).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % CLASSES
    return ArrayDataset(INPUTS, labels, num_classes=CLASSES, name="exact")


def evaluate(targets: Any = None, **options: Any) -> list[Any]:
    model = wrap_module(
        ExactNetwork(), num_classes=CLASSES, input={"channels": 1}, threat_model="Linf-0.15"
    )
    goal = {} if targets is None else {"goal": "targeted", "targets": targets}
    options = {"device": "cpu", "precision": "fp32", "workers": 1} | options
    return robench.evaluate(model, data(), SUITE, **goal, **options)


@pytest.fixture(scope="module")
def every() -> list[Any]:
    return evaluate("all")


def drawn(seed: int, count: int, classes: int) -> tuple[Tensor, Tensor]:
    keys = seeding.sample_keys(seed, [f"s{i}" for i in range(count)])
    return keys, torch.arange(count) % classes


def test_next_and_least_likely() -> None:
    labels = torch.tensor([0, 1, 2])
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -2.0]])
    keys = torch.zeros(3, dtype=torch.int64)
    assert target_classes("next", logits, labels, keys).tolist() == [1, 2, 0]
    # The label itself is no target, whatever its logit.
    assert target_classes("least-likely", logits, labels, keys).tolist() == [1, 0, 0]
    assert target_classes("2", logits, labels, keys).tolist() == [2, 2, 2]


def test_a_random_target_is_one_of_the_others_each_as_often_and_the_samples_own() -> None:
    keys, labels = drawn(0, 6000, 4)
    logits = torch.zeros(6000, 4)
    targets = target_classes("random", logits, labels, keys)
    assert not bool((targets == labels).any())
    ahead = torch.bincount((targets - labels) % 4, minlength=4)
    assert ahead[0] == 0
    assert float((ahead[1:] - 2000).abs().max()) < 4 * (6000 * (1 / 3) * (2 / 3)) ** 0.5
    few = torch.tensor([5000, 7, 1200])
    assert torch.equal(target_classes("random", logits[few], labels[few], keys[few]), targets[few])
    other, _ = drawn(1, 6000, 4)
    assert not torch.equal(target_classes("random", logits, labels, other), targets)
    two = target_classes("random", torch.zeros(6000, 2), labels % 2, keys)
    assert torch.equal(two, 1 - labels % 2)


def test_who_is_attacked() -> None:
    samples = ArrayDataset(INPUTS[:4], torch.tensor([0, 1, 2, 1]), num_classes=3)
    correct = torch.tensor([True, True, False, True])
    logits = torch.zeros(4, 3)
    rows, aims = choose_aims("1", samples, logits, correct, seed=0)
    assert (rows.tolist(), aims.sample.tolist(), aims.classes.tolist()) == ([0], [0], [1])
    rows, aims = choose_aims("all", samples, logits, correct, seed=0)
    assert rows.tolist() == [0, 1, 3]
    assert aims.sample.tolist() == [0, 0, 1, 1, 2, 2]
    assert aims.classes.tolist() == [1, 2, 0, 2, 0, 2]
    rows, aims = choose_aims(None, samples, logits, correct, seed=0)
    assert (rows.tolist(), aims.classes.tolist()) == ([0, 1, 3], [0, 1, 1])


def test_a_broken_sample_is_predicted_as_its_target_and_nothing_else(every: list[Any]) -> None:
    for targets in ("next", "least-likely"):
        for stored in evaluate(targets):
            table = stored.table
            broken = table[table["outcome"] == "broken"]
            assert (broken["adv_prediction"] == broken["target"]).all()
            survived = table[table["outcome"] == "survived"]
            assert not (survived["adv_prediction"] == survived["target"]).fillna(False).any()
            assert (survived["adv_margin"].dropna() >= 0).all()
            assert (table["outcome"] == "clean_error").sum() == 3
            if targets == "next":
                assert (broken["target"] == (broken["label"] + 1) % CLASSES).all()
    assert sum(stored.record.count(Outcome.BROKEN) for stored in every) > 0


def test_all_targets_in_one_run_are_the_fixed_targets_one_by_one(every: list[Any]) -> None:
    for target in (0, CLASSES - 1):
        for whole, alone in zip(every, evaluate(target), strict=True):
            tried = whole.table[f"reached_{target}"]
            outcome = alone.table["outcome"]
            assert ((outcome == "at_target") == (whole.table["label"] == target)).all()
            judged = outcome.isin(["broken", "survived"])
            assert (tried.notna() == judged).all()
            assert ((tried == 1) == (outcome == "broken"))[judged].all()
            # The sample as a whole stands for the first target that was reached.
            first = whole.table["target"].eq(target) & whole.table["outcome"].eq("broken")
            for column in ("adv_prediction", "adv_margin", "perturbation_size"):
                assert (whole.table[column][first] == alone.table[column][first]).all()


def test_targeted_records_depend_on_nothing_but_what_is_in_the_key(every: list[Any]) -> None:
    left = ["forwards", "backwards"]
    for one, other in zip(every, evaluate("all", batch_size=5), strict=True):
        assert one.record.key == other.record.key
        assert one.table.drop(columns=left).equals(other.table.drop(columns=left))
    record = every[0].record
    parts = {
        "model": record.model.fingerprint,
        "dataset": record.dataset,
        "attack": record.attack,
        "seed": 0,
        "precision": "fp32",
        "foreign": {},
    }
    plain = ThreatModel.of("Linf", "0.15")
    rules = (None, *TARGET_RULES, "1", "2")
    keys = [job_key(threat_model=plain.aimed_at(rule), **parts) for rule in rules]
    assert len(set(keys)) == 7
    assert record.key in keys


def test_a_survivor_of_a_targeted_attack_may_be_misclassified() -> None:
    """What is broken for a target is broken; not the other way round."""
    (plain, _), (aimed, _) = evaluate(), evaluate("least-likely")
    assert aimed.record.count(Outcome.BROKEN) < plain.record.count(Outcome.BROKEN)


def test_targeted_records_are_read_again_and_verified(tmp_path: Path) -> None:
    samples = data()
    for targets in ("all", 2):
        records = evaluate(targets, results=tmp_path, save_adversarial=True)
        model = wrap_module(
            ExactNetwork(), num_classes=CLASSES, input={"channels": 1}, threat_model="Linf-0.15"
        )
        for stored in records:
            store = Store(tmp_path)
            again = store.read(stored.record.key)
            assert again.record == stored.record
            assert again.record.threat_model.targets == str(targets)
            kept = store.adversarial_rows(stored.record.key)
            judged, wrong = reverify(again, kept, model, samples, device=torch.device("cpu"))
            assert judged > 0
            assert wrong == {}


def test_classes_are_named_or_numbered() -> None:
    named = ArrayDataset(INPUTS, data().labels, class_names=["2", "cat", "0", "dog", "e", "next"])
    model = wrap_module(
        ExactNetwork(), num_classes=CLASSES, input={"channels": 1}, threat_model="Linf-0.15"
    )

    def threat(targets: Any) -> str:
        request = robench.Request(
            models=(model,),
            dataset=named,
            suite=SUITE,
            goal="targeted",
            targets=targets,
            at_most=None,
        )
        (planned,) = robench.prepare(request).planned
        return str(planned.threat)

    assert threat("cat") == "Linf-0.15-targeted-1"
    assert threat("2") == "Linf-0.15-targeted-0"
    assert threat(2) == "Linf-0.15-targeted-2"
    assert threat("5") == "Linf-0.15-targeted-5"
    assert threat("next") == "Linf-0.15-targeted-next"
    refused = (
        *(("6", "0 to 5"), ("-1", "0 to 5"), ("9" * 50, "0 to 5"), ("dgo", "dog"), ("nxt", "next")),
    )
    for wrong, hint in refused:
        with pytest.raises(UsageError, match=f"targets '{wrong}' are no rule.*{hint}"):
            threat(wrong)


def test_threat_models_say_their_targets() -> None:
    plain = ThreatModel.parse("Linf-8/255")
    assert (str(plain), plain.slug, plain.identity) == ("Linf-8/255", "Linf-8_255", "Linf-8/255")
    for rule in (*TARGET_RULES, "7"):
        aimed = plain.aimed_at(rule)
        assert aimed != plain
        assert aimed.identity == f"Linf-8/255-targeted-{rule}"
        assert ThreatModel.parse(str(aimed)) == ThreatModel.parse(aimed.slug) == aimed
        assert aimed.aimed_at(None) == plain
    assert plain.aimed_at("07") == plain.aimed_at("7")
    for wrong in ("nxt", "-1", "", "1.0", "٣", "9" * 5000):
        with pytest.raises(UsageError, match="rule for targets"):
            plain.aimed_at(wrong)
