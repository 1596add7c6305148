"""``robench attention``: stored or fresh inputs, any map and class, tables and pictures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from invoke_cli import invoke

from robench.metric_catalogue import METRICS
from robench.models.cards import write_card
from robench.models.zoo import find_card
from robench.records import AttentionSpec, Outcome
from robench.results import Store, arrays

pytestmark = pytest.mark.usefixtures("unexamined")

N = 10
PLACE = f"digits-Linf-0.2-n{N}-seed0/pgd-20"
ALIKE = ("--suite", "quick", "--n", N, "--device", "cpu")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A results folder that keeps the adversarial inputs of one model."""
    folder = tmp_path_factory.mktemp("attention") / "results"
    done = invoke(
        *("run", "pgd-at", *ALIKE, "--results", folder, "--save-adversarial", "--no-plots")
    )
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def looked(ran, tmp_path_factory):
    """A look at what is kept, with its files."""
    out = tmp_path_factory.mktemp("look")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robench.reporting.plots.style._DPI", 40)
        done = invoke(
            *("attention", "pgd-at", *ALIKE, "--results", ran, "--out", out, "--samples", 2),
            "--json",
        )
    assert done.code == 0, done.err
    return done.json, out


def record(folder: Path):
    (stored,) = [s for s in Store(folder).records() if s.record.attack.name == "pgd-20"]
    return stored


def test_stored_inputs_give_the_records_own_numbers(ran, looked):
    content, _ = looked
    (group,) = content["groups"]
    (model,) = group["models"]
    stored = record(ran).record
    assert (group["attack"], model["source"]) == ("pgd-20", "stored")
    assert model["attention_method"] == stored.attention_method
    shown = {row["metric"]: row for row in model["metrics"]}
    assert list(shown) == [name for name in METRICS if name in stored.metrics]
    for name, summary in stored.metrics.items():
        row = shown[name]
        found = (row["mean"], row["mean_broken"], row["mean_survived"])
        assert found == pytest.approx(
            (summary.mean, summary.mean_broken, summary.mean_survived), abs=1e-6
        )
        assert row["n"] == summary.n == row["n_broken"] + row["n_survived"]


def test_files_are_those_named_and_the_tables_say_the_same(ran, looked):
    content, out = looked
    folder = out / PLACE
    names = {Path(name).relative_to(folder).name for name in content["files"]}
    assert names == {path.name for path in folder.iterdir()}
    assert names == {
        *("attention.csv", "findings.csv", "per_class.csv", "samples_pgd-at.csv"),
        *("overlays_pgd-at.png", "overlays_pgd-at.svg"),
    }
    samples = pd.read_csv(folder / "samples_pgd-at.csv").sort_values("sample_id")
    table = record(ran).table.sort_values("sample_id")
    assert list(samples["sample_id"]) == list(table["sample_id"])
    assert list(samples["outcome"]) == list(table["outcome"])
    for name in ("attention_deviation", "attention_coverage_clean", "alignment"):
        assert np.allclose(samples[name], table[name].astype(float), equal_nan=True, atol=1e-6)
    means = pd.read_csv(folder / "attention.csv").set_index("metric")["mean"]
    assert means["attention_deviation"] == pytest.approx(samples["attention_deviation"].mean())
    # A picture says what a table says: the deviation of every sample shown stands below it.
    assert (folder / "overlays_pgd-at.png").stat().st_size > 3_000


def test_pictures_that_cannot_be_drawn_are_no_failure(ran, tmp_path, monkeypatch):
    def save(*_: object) -> None:
        raise RuntimeError("no fonts here")

    monkeypatch.setattr("robench.reporting.plots.style.save", save)
    done = invoke(
        *("attention", "pgd-at", *ALIKE, "--results", ran, "--out", tmp_path, "--samples", 2)
    )
    assert done.code == 0, done.err
    assert "no figures: RuntimeError: no fonts here" in done.err
    assert {path.suffix for path in (tmp_path / PLACE).iterdir()} == {".csv"}


def test_what_is_kept_is_decompressed_once(ran, tmp_path, monkeypatch):
    read = []
    rows = arrays.ArrayRows
    monkeypatch.setattr(arrays, "ArrayRows", lambda *a: read.append(a) or rows(*a))
    done = invoke(
        *("attention", "pgd-at", *ALIKE, "--results", ran, "--out", tmp_path, "--samples", 0),
        "--json",
    )
    assert done.code == 0, done.err
    assert done.json["groups"][0]["models"][0]["source"] == "stored"
    # And some of each record's, by which the model is recognised.
    assert len(read) == 1 + len(list(Store(ran).records()))


def test_a_fresh_attack_gives_the_same_and_leaves_no_record(looked, tmp_path):
    content, _ = looked
    results = tmp_path / "results"
    done = invoke("attention", "pgd-at", *ALIKE, "--results", results, "--samples", 0, "--json")
    assert done.code == 0, done.err
    (model,) = done.json["groups"][0]["models"]
    assert model["source"] == "fresh"
    before = {row["metric"]: row["mean"] for row in content["groups"][0]["models"][0]["metrics"]}
    after = {row["metric"]: row["mean"] for row in model["metrics"]}
    assert after == pytest.approx(before, abs=1e-6)
    assert sorted(path.name for path in results.iterdir()) == ["attention"]
    assert not list(results.rglob("overlays*"))


def test_text_names_map_findings_and_worst_classes(ran, tmp_path):
    done = invoke(
        *("attention", "pgd-at", *ALIKE, "--results", ran, "--out", tmp_path, "--samples", 0),
        *("--map", "feature_sum"),
    )
    assert done.code == 0, done.err
    assert "pgd-at under pgd-20, feature_sum@" in done.out
    assert "kept adversarial inputs" in done.out
    assert "attention of broken samples deviates more" in done.out
    stored = record(ran)
    table = stored.table
    robust = (table["outcome"] == Outcome.SURVIVED.value).groupby(table["label"]).mean()
    (line,) = [line.split() for line in done.out.splitlines() if " robust_acc " in line]
    assert line[2] == str(robust.idxmin())
    assert float(line[3]) == pytest.approx(100 * robust.min(), abs=1e-3)


def test_another_layer_and_class_give_other_numbers(ran, tmp_path, looked):
    def deviation(content: Any) -> tuple[str, float]:
        (model,) = content["groups"][0]["models"]
        (row,) = [r for r in model["metrics"] if r["metric"] == "attention_divergence"]
        return model["attention_method"], row["mean"]

    def asked(*options: object) -> tuple[str, float]:
        done = invoke(
            *("attention", "pgd-at", *ALIKE, "--results", ran, "--out", tmp_path),
            *("--samples", 0, "--json", *options),
        )
        assert done.code == 0, done.err
        return deviation(done.json)

    own = deviation(looked[0])
    layer = asked("--layer", "blocks.1")
    zero, predicted = asked("--target", "0"), asked("--target", "predicted")
    assert layer[0] == "grad_cam@blocks.1"
    assert zero[0] == f"{own[0]} for 0"
    assert predicted[0] == f"{own[0]} for the predicted class"
    assert len({own[1], layer[1], zero[1], predicted[1]}) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--attack", "pgd-2"], ["unknown attack", "'pgd-20'"]),
        (["--map", "gradcam"], ["unknown attention method", "'grad_cam'"]),
        (["--layer", "blocs"], ["blocs", "blocks"]),
        (["--layer", "fc"], ["fc"]),
        (["--target", "ten"], ["unknown class 'ten'"]),
        (["--target", "10"], ["unknown class '10'"]),
        (["--map", "feature_sum", "--target", "3"], ["the same for every class"]),
        (["--map", "rollout"], ["attention"]),
        (["--samples", "-1"], ["--samples"]),
        (["--eps", "7"], ["eps"]),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(ran, tmp_path, options, words):
    done = invoke(
        *("attention", "pgd-at", *ALIKE, "--results", ran, "--out", tmp_path / "out", *options)
    )
    assert done.code == 2, done
    assert done.err.splitlines()[-1].startswith("robench: error: ")
    for word in words:
        assert word in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [("--layer", "blocs"), ("--map", "rollout")])
def test_a_map_that_cannot_be_is_refused_before_the_attack(tmp_path, options):
    done = invoke("attention", "pgd-at", *ALIKE, "--results", tmp_path / "r", *options)
    assert done.code == 2
    assert done.err.count("\n") == 1, "an attack was run"


def test_a_folder_that_cannot_be_written_is_refused_before_the_attack(ran, tmp_path):
    (tmp_path / "file").write_text("")
    done = invoke(
        *("attention", "pgd-at", *ALIKE, "--results", tmp_path / "r"),
        *("--out", tmp_path / "file" / "out"),
    )
    assert done.code == 2
    assert "--out" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("field", ["layer", "feature_layer"])
def test_a_cards_wrong_layer_is_refused_before_the_attack(tmp_path, field):
    source = find_card("digits/Linf-0.2/pgd-at")
    shutil.copytree(source.folder, tmp_path / "copy")
    card = source.card.model_copy(update={"attention": AttentionSpec(**{field: "blocs.1"})})
    write_card(card, tmp_path / "copy" / "card.toml")
    for command in ("run", "attention"):
        done = invoke(
            *(command, tmp_path / "copy" / "card.toml", *ALIKE, "--results", tmp_path / "r")
        )
        assert done.code == 2
        assert "'blocks.1'" in done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "r").exists()


def test_leaderboard_writes_findings_and_classes(ran):
    done = invoke("leaderboard", "--results", ran, "--json", "--no-plots")
    assert done.code == 0
    names = [Path(name).name for name in done.json["files"]]
    assert names == ["leaderboard.csv", "findings.csv", "associations.csv", "per_class.csv"]
    findings = pd.read_csv(ran / "findings.csv")
    assert set(findings["finding"]) == {"incomplete_attention", "deviation", "scatter"}
    associations = pd.read_csv(ran / "associations.csv")
    assert list(associations["metric"]) == ["alignment", "exclusion"]
    assert list(associations["verdict"]) == ["undefined"] * 2, "one model has no correlation"
    classes = pd.read_csv(ran / "per_class.csv")
    board = pd.read_csv(ran / "leaderboard.csv")
    assert classes["n"].sum() == N
    assert classes["class"][classes["worst"]].tolist() == board["worst_class"].tolist()


LARGE = """
import resource, sys
import torch, torchvision
from robench.evaluation.sample_metrics import SampleMetrics
from robench.datasets import ArrayDataset
from robench.models import wrap_module
name, method = sys.argv[1:]
torch.manual_seed(0)
network = getattr(torchvision.models, name)(weights=None)
model = wrap_module(network, num_classes=1000, name=name, attention={"method": method}, share=True)
inputs = torch.rand(8, 3, 224, 224)
dataset = ArrayDataset(inputs, torch.arange(8), num_classes=1000)
metrics = SampleMetrics(model, dataset, torch.arange(8), torch.device("cpu"), 8)
adv_inputs = (inputs + 0.03 * torch.randn_like(inputs)).clamp(0, 1)
values = metrics.values(adv_inputs)
assert not metrics.methods.flags, metrics.methods.flags
assert float(values["attention_empty"].sum()) < 8
for column, values_of in values.items():
    assert values_of.shape == (8,), column
defined = values["attention_deviation"][values["attention_empty"] == 0]
assert bool(((defined >= 0) & (defined <= 1)).all())
print(metrics.description)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize(
    ("name", "method", "description"),
    [("resnet18", "grad_cam", "grad_cam@layer4"), ("vit_b_16", "rollout", "rollout")],
)
def test_large_networks_are_measured_within_eight_gigabytes(name, method, description):
    pytest.importorskip("torchvision")
    done = subprocess.run(
        [sys.executable, "-c", LARGE, name, method],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found, peak = done.stdout.split()
    assert found.startswith(description)
    assert int(peak) < 8 * 2**30
