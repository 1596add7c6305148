from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cards import MINIMAL

from robench.errors import CardError, UnknownNameError, UsageError
from robench.models import zoo_folders as folders
from robench.models.cards import parse_card, write_card
from robench.models.zoo import find_card, list_cards
from robench.models.zoo_folders import zoo_folders
from robench.threat_models import ThreatModel


def put(root: Path, dataset: str, threat: str, name: str, num_classes: int = 10) -> Path:
    card = parse_card(MINIMAL).model_copy(
        update={
            "dataset": dataset,
            "threat_model": ThreatModel.parse(threat),
            "name": name,
            "num_classes": num_classes,
        }
    )
    return write_card(card, root / card.id / "card.toml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty world with one zoo: the current folder's."""
    monkeypatch.delenv(folders.ZOO_VARIABLE, raising=False)
    monkeypatch.setattr(folders, "packaged_zoo", lambda: tmp_path / "packaged")
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "model_zoo"
    put(root, "digits", "Linf-0.2", "pgd-at")
    put(root, "digits", "L2-1.5", "pgd-at")
    put(root, "digits", "Linf-0.2", "trades")
    put(root, "cifar10", "Linf-8/255", "trades")
    return root


def test_cards_are_sorted_by_id_and_filtered(folder: Path) -> None:
    assert [card.id for card in list_cards()] == [
        "cifar10/Linf-8_255/trades",
        "digits/L2-1.5/pgd-at",
        "digits/Linf-0.2/pgd-at",
        "digits/Linf-0.2/trades",
    ]
    assert [card.id for card in list_cards("cifar10")] == ["cifar10/Linf-8_255/trades"]
    assert list_cards("nowhere") == []


@pytest.mark.parametrize(
    "name, dataset, threat, expected",
    [
        ("digits/Linf-0.2/pgd-at", None, None, "digits/Linf-0.2/pgd-at"),
        ("DIGITS/linf-0.2/PGD-AT", None, None, "digits/Linf-0.2/pgd-at"),
        ("L2-1.5/pgd-at", None, None, "digits/L2-1.5/pgd-at"),
        ("pgd-at", None, "L2-1.5", "digits/L2-1.5/pgd-at"),
        ("trades", "digits", None, "digits/Linf-0.2/trades"),
        ("cifar10/Linf-8/255/trades", None, None, "cifar10/Linf-8_255/trades"),
        ("trades", None, "Linf-8/255", "cifar10/Linf-8_255/trades"),
    ],
)
def test_names_long_and_short(
    folder: Path, name: str, dataset: str | None, threat: str | None, expected: str
) -> None:
    located = find_card(name, dataset, threat)
    assert located.id == expected
    assert located.folder == folder / expected
    assert not located.trusted


def test_ambiguous_names_list_the_candidates(folder: Path) -> None:
    with pytest.raises(UsageError, match="ambiguous") as raised:
        find_card("trades")
    assert "cifar10/Linf-8_255/trades, digits/Linf-0.2/trades" in str(raised.value)


def test_unknown_names_list_near_misses(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'tradez'. Did you mean 'trades'"):
        find_card("tradez")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'digits/Linf-0.2/pgd-at'"):
        find_card("digits/Linf-0.2/pgd_at")
    with pytest.raises(UsageError, match=r"no model 'trades' for svhn. There is cifar10/"):
        find_card("trades", "svhn")
    with pytest.raises(UsageError, match="not a threat model"):
        find_card("trades", threat_model="Linf")


def test_paths_work_inside_and_outside_the_zoo(folder: Path, tmp_path: Path) -> None:
    inside = folder / "digits/Linf-0.2/trades"
    assert find_card("model_zoo/digits/Linf-0.2/trades").path == inside / "card.toml"
    outside = put(tmp_path / "elsewhere", "digits", "Linf-0.1", "mine")
    located = find_card(str(outside))
    assert located.id == "digits/Linf-0.1/mine"
    assert find_card(outside.parent).path == outside
    with pytest.raises(CardError, match="no such card"):
        find_card("./missing/card.toml")
    with pytest.raises(CardError, match="no such card"):
        find_card(Path("trades"))


def test_earlier_folders_hide_later_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "mine", "digits", "Linf-0.2", "trades", num_classes=3)
    put(tmp_path / "packaged", "digits", "Linf-0.2", "trades", num_classes=7)
    assert find_card("digits/Linf-0.2/trades").card.num_classes == 10
    monkeypatch.setenv(folders.ZOO_VARIABLE, os.pathsep.join(["mine", "", "model_zoo"]))
    assert zoo_folders() == (tmp_path / "mine", folder, tmp_path / "packaged")
    assert find_card("digits/Linf-0.2/trades").card.num_classes == 3
    monkeypatch.setenv(folders.ZOO_VARIABLE, "absent")
    with pytest.raises(UsageError, match=r"no such folder.*ROBENCH_ZOO"):
        zoo_folders()


def test_a_broken_card_does_not_hide_the_others(folder: Path) -> None:
    broken = folder / "digits/Linf-0.2/broken/card.toml"
    broken.parent.mkdir()
    broken.write_text("name = 3")
    with pytest.raises(CardError, match="broken"):
        list_cards()
    problems: list[CardError] = []
    assert len(list_cards(problems=problems)) == 4
    assert [problem.where for problem in problems] == [str(broken)]
    assert find_card("L2-1.5/pgd-at").card.name == "pgd-at"
    with pytest.raises(CardError, match="dataset is missing"):
        find_card("broken")


def test_a_card_in_the_wrong_folder_is_refused(folder: Path) -> None:
    (folder / "digits/Linf-0.2/trades").rename(folder / "digits/Linf-0.2/other")
    with pytest.raises(CardError, match=r"id is 'digits/Linf-0.2/trades' but its folder is"):
        list_cards()


def test_listing_the_zoo_imports_no_torch() -> None:
    code = (
        "import sys, robench.models.cards, robench.models.zoo as z, robench.models;"
        "z.list_cards(problems=[]);"
        "sys.exit(sorted({'torch', 'numpy', 'torchvision'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
