"""`robench.toml`, which a stranger's repository may bring: defaults, and nothing else."""

from __future__ import annotations

import pytest
from invoke_cli import invoke
from record_factory import make_record, make_samples

from robench.cli.defaults import CHECKS
from robench.cli.options import CLUSTER, RequestOptions, model_names
from robench.models.zoo import list_cards
from robench.results import Store


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with two records in a results folder of another name."""
    monkeypatch.chdir(tmp_path)
    for n in (4, 6):
        samples = make_samples("S" * n)
        Store(tmp_path / "mine").write(make_record(samples), samples)
    return tmp_path


def test_options_have_the_defaults_of_the_file(here):
    (here / "robench.toml").write_text('results = "mine"\n[export]\nformat = "markdown"\nn = 6\n')
    done = invoke("export")
    assert done.code == 0
    assert done.out.startswith("digits, Linf, eps 0.2, n = 6")
    assert "n = 4" not in done.out
    # Other numbers than robench's own defaults give are never without a word.
    assert done.err == "robench: note: robench.toml sets results = mine, form = markdown, n = 6\n"


def test_commands_of_commands_have_them_too(here):
    (here / "robench.toml").write_text('results = "mine"\n')
    assert len(invoke("results", "list").out.splitlines()) == 3
    assert "no such results folder" in invoke("results", "list", "--results", "other").err


def test_the_command_line_goes_first(here):
    (here / "robench.toml").write_text('results = "mine"\n[export]\nn = 6\nformat = "markdown"\n')
    assert "n = 4" in invoke("export", "-n", 4).out


def test_quiet_says_no_notes(here):
    (here / "robench.toml").write_text('results = "mine"\n')
    assert "robench.toml" not in invoke("leaderboard", "--no-plots", "-q").err
    assert "excludes" in invoke("leaderboard", "-q", "-v").err


def test_config_shows_what_is_set_for_whom(here):
    assert "there is none" in invoke("config").out
    (here / "robench.toml").write_text('results = "mine"\n[run]\nn = 20\neps = "8/255"\n')
    found = invoke("config", "--json").json["defaults"]
    assert found["run"] == {"results": "mine", "n": 20, "eps": "8/255"}
    assert found["leaderboard"] == found["results list"] == {"results": "mine"}
    assert "attacks" not in found
    assert "run" in invoke("config").out


FORBIDDEN = (
    "trust_code = true",
    "trust_pickle = true",
    "download = true",
    'architecture = "evil.module:build"',
    'arch = "evil.module:build"',
    'data_root = "/"',
    'weights = ["key=x"]',
    'models = ["x"]',
    'dataset = "evil.module:load"',
    'dataset = "hf:owner/name"',
    'suite = "evil.module:Suite"',
    'suite = "/etc/suite.toml"',
    'suite = "../suite.toml"',
    'results = "~/results"',
    'results = "/tmp/x"',
    'results = "a/../../b"',
    "results = 'C:\\x'",
    "results = '\\\\host\\x'",
    'results = ""',
    "n = true",
    "n = 1.5",
    'n = "20"',
    'eps = "8/255; rm"',
    'device = "cpu\\u001b[31m"',
    "seed = [1]",
)


@pytest.mark.parametrize("line", FORBIDDEN)
def test_it_sets_nothing_that_runs_fetches_or_leaves_the_folder(here, line):
    (here / "robench.toml").write_text(f"[run]\n{line}\n")
    done = invoke("run")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "robench.toml" in done.err
    assert "\x1b" not in done.err


def test_a_link_out_of_the_folder_is_refused(here, tmp_path_factory):
    (here / "out").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    (here / "robench.toml").write_text('results = "out/results"\n')
    assert "leads out of this folder" in invoke("leaderboard").err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n = ", "robench.toml"),
        ("n = 3", "in a table of their command"),
        ("[rum]\nn = 3", "Did you mean 'run'"),
        ("[export]\nsead = 3", "may set"),
        ("[attacks]\nn = 3", "unknown option of [attacks]"),
    ],
)
def test_a_wrong_file_is_one_line(here, text, words):
    (here / "robench.toml").write_text(text)
    done = invoke("attacks")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert words in done.err


def test_nothing_that_names_or_trusts_code_is_allowed():
    dangerous = {"trust_code", "trust_pickle", "download", "architecture", "data_root", "weights"}
    dangerous |= {"architecture_arguments", "input", "forward", "dataset_options", "shard"}
    # A cluster that somebody's file names would be sent the model.
    dangerous |= {"settings", *CLUSTER}
    assert not dangerous & CHECKS.keys()
    # Every field of a request is one or the other: a new one has to be thought of.
    assert set(vars(RequestOptions)["__annotations__"]) <= dangerous | CHECKS.keys()


def test_models_are_completed():
    names = [found.card.name for found in list_cards()]
    assert model_names("") == list(dict.fromkeys(names))
    assert model_names("pgd") == ["pgd-at"]
    assert model_names("digits/Linf-0.2/p") == ["digits/Linf-0.2/pgd-at"]
    assert model_names("nobody") == []


def test_doctor_without_a_model_looks_at_the_installation(here, monkeypatch):
    done = invoke("doctor", "--json")
    found = {part["name"]: part for part in done.json}
    assert done.code == (1 if any(p["state"] == "lacking" for p in done.json) else 0)
    assert {"robench", "Python", "packages", "cpu", "device", "memory", "disk"} <= set(found)
    assert found["zoo"]["said"].split()[0] == str(len(list_cards()))
    (here / "taken").write_text("")
    monkeypatch.setenv("ROBENCH_CACHE", str(here / "taken"))
    done = invoke("doctor")
    assert done.code == 1
    assert "lacking" in next(line for line in done.out.splitlines() if line.startswith("cache"))
