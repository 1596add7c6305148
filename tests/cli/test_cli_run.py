"""The main job through the command line: models in; records, leaderboard and answers out."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forked_command import ForkedCommand
from invoke_cli import invoke

from robench.api import prepare
from robench.models.zoo import find_card
from robench.records import Outcome
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.request import Request
from robench.results import RecordFilter, Store
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")

N = 12


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A results folder with two models, and what the command said."""
    folder = tmp_path_factory.mktemp("run") / "results"
    done = invoke(
        *("run", "pgd-at", "standard", "--suite", "quick", "--n", N, "--results", folder),
        *("--save-adversarial", "--device", "cpu", "--no-plots"),
    )
    assert done.code == 0, done.err
    return folder, done


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_table_ranks_the_models(ran):
    _, done = ran
    lines = done.out.splitlines()
    assert f"n = {N}" in lines[0]
    assert [line.split()[1] for line in lines[2:4]] == ["pgd-at", "standard"]
    assert lines[3].split()[0] == "2"


def test_a_log_has_a_line_for_each_attack_and_model(ran):
    _, done = ran
    for model in ("pgd-at", "standard"):
        assert f"{model} · fgsm: " in done.err
        assert f"{model} · pgd-20: " in done.err
        assert f"{model}: robust " in done.err


def test_the_folder_holds_records_and_csv(ran):
    folder, _ = ran
    assert len(Store(folder).keys()) == 4
    frame = pd.read_csv(folder / "leaderboard.csv")
    assert list(frame["model"]) == ["pgd-at", "standard"]
    assert list(frame["n"]) == [N, N]


def test_a_second_run_computes_nothing_and_json_gives_the_same_rows(ran):
    folder, _ = ran
    before = _files(folder)
    again = invoke(
        *("run", "pgd-at", "standard", "--suite", "quick", "--n", N, "--results", folder),
        *("--no-plots", "--json"),
    )
    assert again.code == 0
    assert again.err.count("stored before") == 4
    assert _files(folder) == before
    rows = again.json["leaderboard"]
    frame = pd.read_csv(folder / "leaderboard.csv")
    assert [row["model"] for row in rows] == list(frame["model"])
    assert [row["robust_acc"] for row in rows] == list(frame["robust_acc"])
    assert str(folder / "leaderboard.csv") in again.json["files"]


@pytest.mark.usefixtures("saved_unseen")
def test_leaderboard_rebuilds_the_same_bytes_and_draws_everything(ran, tmp_path):
    folder, _ = ran
    copy = tmp_path / "results"
    shutil.copytree(folder / "records", copy / "records")
    done = invoke("leaderboard", "--results", copy, "--json")
    assert done.code == 0
    assert (copy / "leaderboard.csv").read_bytes() == (folder / "leaderboard.csv").read_bytes()
    files = [Path(name) for name in done.json["files"]]
    assert all(path.is_file() for path in files)
    assert files[:2] == [copy / "leaderboard.csv", copy / "index.html"]
    assert "pgd-at" in files[1].read_text()
    names = {path.name for path in files}
    for stem in ("accuracy_by_attack", "clean_against_robust", "robust_against_deviation"):
        assert {f"{stem}.png", f"{stem}.svg"} <= names
    assert "samples_pgd-at.png" in names
    before = _files(copy)
    assert invoke("leaderboard", "--results", copy).code == 0
    assert _files(copy) == before


def test_filters_print_and_leave_the_folder_alone(ran, tmp_path):
    folder, _ = ran
    before = _files(folder)
    done = invoke("leaderboard", "--results", folder, "--norm", "L2", "--csv", tmp_path / "l2.csv")
    assert done.code == 0
    assert "No results" in done.out
    assert _files(folder) == before
    assert (tmp_path / "l2.csv").read_bytes() == leaderboard_csv(
        build_leaderboard(Store(folder), RecordFilter(norm="L2"))
    )
    only = invoke("leaderboard", "--results", folder, "--suite", "aa-standard", "--json")
    assert only.json["leaderboard"] == []


def test_results_list_and_show_agree_with_the_store(ran):
    folder, _ = ran
    listed = invoke("results", "list", "--results", folder, "--json").json
    assert {item["key"] for item in listed["records"]} == set(Store(folder).keys())
    assert listed["problems"] == []
    item = listed["records"][0]
    shown = invoke("results", "show", item["key"][:10], "--results", folder, "--json").json
    assert shown["attack"]["name"] == item["attack"]
    assert sum(shown["counts"].values()) == N
    assert item["robust_acc"] == pytest.approx(100 * shown["counts"]["survived"] / N)
    text = invoke("results", "show", item["key"][:10], "--results", folder).out
    assert item["key"] in text
    assert "attention_deviation" in text
    only = invoke(
        "results", "list", "--results", folder, "--eps", "1/5", "--norm", "linf", "--json"
    )
    assert len(only.json["records"]) == 4
    other = invoke("results", "list", "--results", folder, "--eps", "0.21", "--json")
    assert other.json["records"] == []


@pytest.mark.parametrize("key", ["abc", "zzzzzzzz"])
def test_results_show_of_no_record(ran, key):
    folder, _ = ran
    done = invoke("results", "show", key, "--results", folder)
    assert done.code == 2
    assert key in done.err


def test_results_list_names_a_damaged_record(ran, tmp_path):
    folder, _ = ran
    shutil.copytree(folder, tmp_path / "r")
    victim = sorted((tmp_path / "r" / "records").rglob("*.json"))[0]
    victim.write_bytes(victim.read_bytes().replace(b"survived", b"survivor", 1))
    done = invoke("results", "list", "--results", tmp_path / "r")
    assert done.code == 2
    assert "checksum" in done.err
    assert len(done.out.splitlines()) == 1 + 3


def test_export_has_every_sample_of_every_record(ran, tmp_path):
    folder, _ = ran
    out = ("--out", tmp_path / "all.csv")
    assert invoke("export", "--samples", "--results", folder, *out).code == 0
    frame = pd.read_csv(tmp_path / "all.csv")
    assert len(frame) == 4 * N
    for (model, attack), part in frame.groupby(["model", "attack"]):
        record = next(
            s
            for s in Store(folder).records()
            if (s.record.model.id, s.record.attack.name) == (model, attack)
        ).record
        assert (part["outcome"] == "survived").sum() == record.count(Outcome.SURVIVED)


def test_export_for_robustbench(ran, tmp_path):
    folder, _ = ran
    done = invoke("export", "--results", folder, "--out", tmp_path, "--format", "robustbench")
    assert done.out.splitlines() == [
        str(tmp_path / "digits" / "Linf-0.2" / f"{name}.json") for name in ("pgd-at", "standard")
    ]


def test_verify_judges_the_stored_inputs_again(ran):
    folder, _ = ran
    done = invoke("results", "verify", "--results", folder, "--device", "cpu", "--json")
    assert done.code == 0
    assert len(done.json) == 4
    for item in done.json:
        counts = Store(folder).read(item["key"]).record.counts
        assert item["judged"] == counts[Outcome.BROKEN] + counts[Outcome.SURVIVED]


def test_verify_finds_inputs_that_do_not_do_what_the_record_says(ran, tmp_path):
    folder, _ = ran
    shutil.copytree(folder, tmp_path / "r")
    store = Store(tmp_path / "r")
    stored = next(
        s
        for s in store.records()
        if s.record.model.name == "standard" and s.record.attack.name == "pgd-20"
    )
    honest = store.adversarial_rows(stored.record.key)[:]
    forged = np.where(honest > 0.5, honest - 0.5, honest + 0.5)
    store.write(stored.record, stored.samples, adversarial=forged)
    done = invoke("results", "verify", "--results", store.folder, "--device", "cpu")
    assert done.code == 2
    (line,) = [line for line in done.out.splitlines() if "BAD" in line]
    assert "outside the threat model" in line
    assert stored.record.key[:12] in line


def test_compare_prints_differences_and_writes_files(ran, tmp_path):
    folder, _ = ran
    done = invoke(
        *("compare", "pgd-at", "Linf-0.2/standard", "--results", folder),
        *("--csv", tmp_path / "c.csv", "--markdown", tmp_path / "c.md"),
    )
    assert done.code == 0
    assert (tmp_path / "c.md").read_text().rstrip() == done.out.rstrip()
    table = pd.read_csv(tmp_path / "c.csv").set_index("quantity")
    assert table.loc["robust_acc", "verdict"] == "worse"
    content = invoke("compare", "pgd-at", "standard", "--results", folder, "--json").json
    assert {d["quantity"] for d in content["differences"]} == set(table.index)


@pytest.mark.usefixtures("saved_unseen")
def test_compare_draws_what_only_one_resists(ran, tmp_path, monkeypatch):
    monkeypatch.setattr("robench.inspection.comparison_pictures._MOST", 2)
    folder, _ = ran
    out = tmp_path / "pictures"
    done = invoke("compare", "pgd-at", "standard", "--results", folder, "--pictures", out)
    assert done.code == 0, done.err
    names = {path.name for path in out.iterdir()}
    assert {"differences.png", "resisted_by_pgd-at_not_by_standard.png"} <= names
    assert "resisted_by_standard_not_by_pgd-at.png" not in names


@pytest.mark.usefixtures("saved_unseen")
def test_compare_without_stored_inputs_says_what_it_could_not_draw(ran, tmp_path):
    folder, _ = ran
    store = Store(tmp_path / "r")
    for stored in Store(folder).records():
        store.write(stored.record, stored.samples)
    done = invoke(
        *("compare", "pgd-at", "standard", "--results", store.folder),
        *("--pictures", tmp_path / "pictures"),
    )
    assert done.code == 0
    assert "--save-adversarial" in done.err
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == {"differences"}


@pytest.fixture
def lenient(tmp_path):
    """A policy that n = 24 can decide."""
    path = tmp_path / "policy.toml"
    path.write_text(
        "[robust_acc]\nmargin = 25.0\n[clean_acc]\nmargin = 25.0\n"
        "[worst_class_robust_acc]\nmargin = 100.0\nenabled = false\n"
        "[attention_deviation]\nmargin = 0.9\nenabled = false\n"
    )
    return path


@pytest.mark.parametrize(
    ("candidate", "baseline", "code"),
    [("pgd-at", "standard", 0), ("standard", "pgd-at", 1), ("pgd-at", "pgd-at", 0)],
)
def test_check_answers_with_its_exit_code(ran, lenient, tmp_path, candidate, baseline, code):
    folder, _ = ran
    done = invoke(
        *("check", candidate, "--against", baseline, "--results", folder, "--policy", lenient),
        *("--junit", tmp_path / "c.xml", "--markdown", tmp_path / "c.md"),
        *("--json-file", tmp_path / "c.json", "--json"),
    )
    assert done.code == code, done
    assert done.json["exit_code"] == code
    assert (tmp_path / "c.json").read_text() == done.out
    assert "<testsuite" in (tmp_path / "c.xml").read_text()
    assert baseline in (tmp_path / "c.md").read_text()


def test_check_says_when_n_cannot_tell(ran):
    folder, _ = ran
    done = invoke("check", "pgd-at", "--against", "standard", "--results", folder)
    assert done.code == 2
    assert "cannot tell" in done.out
    assert "about n =" in done.out


def test_check_takes_the_baseline_from_another_folder_or_a_leaderboard(ran, lenient, tmp_path):
    folder, _ = ran
    shutil.copytree(folder / "records", tmp_path / "old" / "records")
    common = ("check", "pgd-at", "--results", folder, "--policy", lenient)
    paired = invoke(*common, "--against", "pgd-at", "--baseline-from", tmp_path / "old")
    assert paired.code == 0
    row = invoke(*common, "--against", "standard", "--baseline-from", folder / "leaderboard.csv")
    assert row.code == 0
    assert "unpaired" in row.out


def test_check_runs_what_is_missing_on_the_baselines_samples(ran, lenient, tmp_path):
    folder, _ = ran
    shutil.copytree(folder / "records", tmp_path / "r" / "records")
    before = set(Store(tmp_path / "r").keys())
    done = invoke(
        *("check", "trades", "--against", "standard", "--results", tmp_path / "r"),
        *("--policy", lenient, "--suite", "quick", "--device", "cpu"),
    )
    assert done.code == 0, done
    store = Store(tmp_path / "r")
    new = [s.record for s in store.records() if s.record.key not in before]
    assert {(r.model.name, r.attack.name, r.n) for r in new} == {
        ("trades", "fgsm", N),
        ("trades", "pgd-20", N),
    }


def test_check_fill_adds_the_attacks_that_are_missing(ran, tmp_path):
    folder, _ = ran
    suite = tmp_path / "more.toml"
    suite.write_text('[[attacks]]\nname = "one"\nattack = "pgd"\nparams = { steps = 1 }\n')
    shutil.copytree(folder / "records", tmp_path / "r" / "records")
    invoke(
        *("check", "pgd-at", "--against", "standard", "--results", tmp_path / "r", "--fill"),
        *("--suite", suite, "--n", N, "--device", "cpu"),
    )
    records = [s.record for s in Store(tmp_path / "r").records()]
    assert sorted(r.model.name for r in records if r.attack.name == "one") == ["pgd-at", "standard"]


def test_a_weights_file_without_a_card_becomes_a_row(tmp_path):
    located = find_card("digits/Linf-0.2/pgd-at")
    weights = tmp_path / "mine.safetensors"
    shutil.copy(located.folder / "weights.safetensors", weights)
    built = located.card.architecture
    arguments = [f"--arch-arg={name}={value}" for name, value in built.arguments.items()]
    done = invoke(
        *("run", weights, "--arch", built.name, *arguments, "--dataset", "digits", "--eps", "0.1"),
        *("--suite", "quick", "--n", 5, "--results", tmp_path / "r", "--no-plots", "--json"),
    )
    assert done.code == 0, done.err
    (row,) = done.json["leaderboard"]
    assert (row["model"], row["eps"], row["n"]) == ("mine", "0.1", 5)


def test_several_radii_are_one_table_and_records_as_alone(tmp_path):
    suite = tmp_path / "one.toml"
    suite.write_text('[[attacks]]\nname = "one"\nattack = "pgd"\nparams = { steps = 1 }\n')
    common = ("run", "pgd-at", "--suite", suite, "--n", 3, "--device", "cpu", "--no-plots")
    done = invoke(*common, "--eps", "0,0.1,1/5", "--results", tmp_path / "r")
    assert done.code == 0, done.err
    title, header, *rows = done.out.splitlines()
    assert title.startswith("digits Linf, n = 3")
    assert header.split()[:3] == ["eps", "rank", "model"]
    assert [row.split()[0] for row in rows] == ["0", "0.1", "1/5"]
    assert invoke(*common, "--eps", "0.1", "--results", tmp_path / "alone").code == 0
    alone, listed = Store(tmp_path / "alone"), Store(tmp_path / "r")
    assert len(listed.keys()) == 2
    assert all(listed.read(key).samples == alone.read(key).samples for key in set(alone.keys()))
    gate = ("check", "pgd-at", "--against", "trades", "--results", tmp_path / "r")
    assert "--eps holds 2 radii" in invoke(*gate, "--eps", "0.1,0.2").err
    wanted = invoke("leaderboard", "--results", tmp_path / "r", "--eps", "0.1,0.2", "--json")
    assert [row["eps"] for row in wanted.json["leaderboard"]] == ["0.1", "1/5"]


def test_another_threat_model_than_the_cards(tmp_path):
    request = Request(
        models=["pgd-at"],
        dataset="digits",
        suite="quick",
        results=tmp_path,
        n=3,
        norm="l2",
        eps="1/2",
        device="cpu",
    )
    prepared = prepare(request)
    assert list(tmp_path.iterdir()) == []
    records = prepared.run()
    assert {s.record.threat_model for s in records} == {ThreatModel.of("L2", "0.5")}
    assert {s.record.model.threat_model for s in records} == {ThreatModel.of("Linf", "0.2")}


def test_train_writes_a_model_that_can_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(
        "train",
        "standard",
        "--epochs",
        1,
        "--name",
        "tiny",
        "--set",
        "lr=0.05",
        "--arch=digits_resnet",
        "--arch-arg=width=4",
        "--device",
        "cpu",
        "--quiet",
    )
    assert done.code == 0, done.err
    card = tmp_path / "model_zoo" / "digits" / "Linf-0.2" / "tiny" / "card.toml"
    assert Path(done.out.strip()).resolve() == card
    ran = invoke("run", "tiny", "--suite", "quick", "--n", 3, "--no-plots", "--json")
    assert [row["model"] for row in ran.json["leaderboard"]] == ["tiny"]
    again = invoke("train", "standard", "--epochs", 1, "--name", "tiny", "--device", "cpu")
    assert again.code == 2
    assert "--overwrite" in again.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_ctrl_c_keeps_what_is_finished_and_another_run_goes_on(tmp_path):
    suite = tmp_path / "long.toml"
    suite.write_text(
        '[[attacks]]\nname = "short"\nattack = "pgd"\nparams = { steps = 1 }\n'
        '[[attacks]]\nname = "long"\nattack = "square"\nparams = { queries = 80 }\n'
    )

    def command(results):
        return [
            *("run", "pgd-at", "--suite", str(suite)),
            *("--results", str(tmp_path / results), "--device", "cpu", "--n", "3"),
            *("--precision", "fp32", "--no-plots"),
        ]

    process = ForkedCommand(*command("r"), folder=tmp_path)
    deadline = time.monotonic() + 60
    while "short" not in process.stderr and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, process.stderr
    rest = process.stderr
    assert rest.splitlines()[-1] == "robench: interrupted; finished results are kept"
    assert "Traceback" not in rest
    names = {s.record.attack.name for s in Store(tmp_path / "r").records()}
    assert names == {"short"}
    assert not list((tmp_path / "r").rglob("*.tmp"))
    for results in ("r", "unbroken"):
        done = invoke(*command(results))
        assert done.code == 0, done.err
    resumed, unbroken = (
        {s.record.attack.name: s.table for s in Store(tmp_path / results).records()}
        for results in ("r", "unbroken")
    )
    for name in ("short", "long"):
        pd.testing.assert_frame_equal(resumed[name], unbroken[name])
