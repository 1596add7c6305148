"""Nothing of a stranger's is executed: only what came with robench and what was trusted by name."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from invoke_cli import invoke

from robench.attacks.suites import load_suite
from robench.errors import RobenchError, StoreError, UnsafeCheckpointError, UsageError
from robench.files import config_folder
from robench.models.loading import load_model
from robench.models.zoo import find_card, list_cards
from robench.trust import is_trusted, revoke, trust, trusted_paths

HEAD = """schema_version = 1
name = "{name}"
dataset = "digits"
num_classes = 10
threat_model = "Linf-0.2"
defense = "standard"
input = {{ channels = 1 }}
"""


@pytest.fixture
def cloned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which somebody else made: cards and a suite that would run code."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "EXECUTED"
    put("nice", "os:system", f"touch {mark}", tmp_path)
    put("nicer", "pathlib:Path.touch", "", tmp_path)
    (tmp_path / "stranger.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Attack: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "suite.toml").write_text('[[attacks]]\nname = "a"\nattack = "stranger:Attack"\n')
    return tmp_path


def put(name: str, architecture: str, command: str, root: Path) -> Path:
    folder = root / "model_zoo/digits/Linf-0.2" / name
    folder.mkdir(parents=True)
    torch.save({"w": torch.zeros(1)}, folder / "w.pt")
    digest = hashlib.sha256((folder / "w.pt").read_bytes()).hexdigest()
    (folder / "card.toml").write_text(
        HEAD.format(name=name)
        + f'weights = {{ path = "w.pt", sha256 = "{digest}" }}\n'
        + f'[architecture]\nname = "{architecture}"\n'
        + (f'arguments = {{ command = "{command}" }}\n' if command else "")
    )
    return folder


def test_a_strangers_cards_are_listed_and_refused(cloned: Path) -> None:
    rows = {line.split()[0]: line for line in invoke("zoo", "list").out.splitlines()}
    for name in ("nice", "nicer"):
        assert rows[f"digits/Linf-0.2/{name}"].endswith("names code")
        assert "# names code\n" in invoke("zoo", "show", name).out
        done = invoke("run", name, "--suite", "quick", "--n", "10")
        assert done.code == 2
        assert "robench trust" in done.err
        assert "--trust-code" in done.err
    assert not rows["digits/Linf-0.2/standard"].endswith("code")
    assert invoke("zoo", "verify").code == 2
    assert invoke("run", "--dataset", "digits", "--suite", "quick", "--n", "10").code == 2
    assert invoke("run", "standard", "--suite", "suite.toml", "--n", "10").code == 2
    assert invoke("run", "standard", "--dataset", "stranger:Attack", "--n", "10").code == 2
    assert not (cloned / "EXECUTED").exists()


@pytest.mark.parametrize("variable", ["ROBENCH_ZOO", "copied card"])
def test_a_named_zoo_or_path_is_no_trust(
    cloned: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(cloned / "model_zoo", cloned / "other")
    if variable == "ROBENCH_ZOO":
        monkeypatch.setenv(variable, str(cloned / "other"))
        name = "nice"
    else:
        name = str(cloned / "other/digits/Linf-0.2/nice")
    with pytest.raises(UnsafeCheckpointError, match="would import and call os:system"):
        load_model(name)
    assert not (cloned / "EXECUTED").exists()


def test_trust_by_name_lets_it_run_until_a_file_changes(cloned: Path) -> None:
    folder = cloned / "model_zoo/digits/Linf-0.2/nice"
    assert invoke("trust", folder).code == 0
    assert invoke("trust").out == invoke("trust", "--list").out
    assert [(row["path"], row["state"]) for row in invoke("trust", "--json").json] == [
        (str(folder), "trusted")
    ]
    assert "names code, trusted" in invoke("zoo", "list").out
    with pytest.raises(RobenchError):  # os.system builds no network, but it ran
        load_model("nice")
    (cloned / "EXECUTED").unlink()
    with pytest.raises(UnsafeCheckpointError):  # its neighbour was not trusted
        load_model("nicer")
    (folder / "more.txt").write_text("new")
    assert trusted_paths()[0].state == "changed"
    with pytest.raises(UnsafeCheckpointError):
        load_model("nice")
    assert not (cloned / "EXECUTED").exists()


@pytest.mark.parametrize("change", ["content", "added", "removed", "link", "moved", "revoked"])
def test_what_ends_trust(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "mine"
    (folder / "inner").mkdir(parents=True)
    card, other = folder / "card.toml", folder / "inner/other.py"
    card.write_text("a"), other.write_text("b")
    trust(folder)
    assert is_trusted(card)
    assert is_trusted(other)
    assert is_trusted(folder)
    assert not is_trusted(tmp_path / "elsewhere.toml")
    if change == "content":
        other.write_text("c")
    elif change == "added":
        (folder / ".hidden").write_text("")
    elif change == "removed":
        other.unlink()
    elif change == "link":
        other.unlink()
        other.symlink_to(card)
    elif change == "moved":
        folder.rename(tmp_path / "was")
        folder.symlink_to(tmp_path / "was")
    else:
        assert revoke(folder) == folder
    assert not is_trusted(card)


def test_links_and_what_is_not_hashed_are_never_trusted(tmp_path: Path) -> None:
    folder, outside = tmp_path / "mine", tmp_path / "outside.toml"
    (folder / ".git").mkdir(parents=True)
    outside.write_text("")
    (folder / "card.toml").symlink_to(outside)
    trust(folder)
    assert not is_trusted(folder / "card.toml")
    (folder / ".git/card.toml").write_text("")
    assert not is_trusted(folder / ".git/card.toml")


def test_a_trusted_suite_and_its_includes(cloned: Path) -> None:
    outer = cloned / "outer.toml"
    outer.write_text('[[attacks]]\ninclude = "suite.toml"\n')
    trust(outer)
    with pytest.raises(UsageError, match=r"robench trust .*suite.toml"):
        load_suite(outer)
    trust(cloned / "suite.toml")
    assert load_suite(outer).attacks[0].attack == "stranger:Attack"
    assert not (cloned / "EXECUTED").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_program_needs_trust_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = put("traced", "program", "", tmp_path)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 1, 8, 8)), folder / "w.pt")
    card = folder / "card.toml"
    old = card.read_text().partition('sha256 = "')[2][:64]
    new = hashlib.sha256((folder / "w.pt").read_bytes()).hexdigest()
    card.write_text(card.read_text().replace(old, new))
    with pytest.raises(UnsafeCheckpointError):
        load_model("traced")
    trust(folder)
    assert load_model("traced")(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_what_came_with_robench_is_trusted_and_nothing_else() -> None:
    assert all(located.trusted for located in list_cards())
    assert find_card("digits/Linf-0.2/standard").trusted


def test_a_damaged_list_trusts_nothing_and_says_where_it_is(tmp_path: Path) -> None:
    trust(tmp_path)
    path = config_folder() / "trusted.json"
    for content in ("", "[]", '{"trusted": 3}', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(StoreError, match=r"trusted\.json: the list"):
            is_trusted(tmp_path / "x")


SLOW_TO_LOAD = {"torch._dynamo", "sympy", "sklearn", "torchvision", "pandas", "matplotlib"}
"""Large, and nothing that the doctor needs."""
MODULES = ("typer", "numpy", "rich", "json", "difflib", "hashlib", "uuid")


def test_the_working_folder_stands_in_for_no_installed_module(
    tmp_path: Path,
) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text("open('EXECUTED', 'w').close()\nraise SystemExit\n")
    # What an installed package would announce to torch, which imports it.
    plug_in = tmp_path / "evil.egg-info"
    plug_in.mkdir()
    (plug_in / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (plug_in / "entry_points.txt").write_text("[torch.backends]\nevil = rich:go\n")
    python = [sys.executable, "-X", "importtime", "-m", "robench"]
    command = [*python, "doctor", "digits/Linf-0.2/pgd-at", "--n", "1"]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "EXECUTED").exists()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & SLOW_TO_LOAD


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    for words, said in (
        (["--revoke"], "needs a PATH"),
        ([tmp_path, "--list"], "--list takes no PATH"),
        ([tmp_path / "absent"], "there is no such folder"),
        ([tmp_path, "--revoke"], "is not trusted"),
    ):
        done = invoke("trust", *words)
        assert done.code == 2
        assert said in done.err
    assert invoke("trust").out == "Nothing is trusted.\n"
