"""A recipe from outside robench, as CONTRIBUTING says to write one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from invoke_cli import invoke
from outside_package import install
from safetensors.torch import load_file

from robench.defenses import TrainingJob, resolve, train
from robench.defenses.catalogue import RECIPES
from robench.defenses.training_state import TrainingState
from robench.errors import UsageError
from robench.models import load_model, read_card
from robench.records import ArchitectureSpec

TINY = ArchitectureSpec(name="digits_resnet", arguments={"width": 4})

RECIPE = '''
from pydantic import Field
from torch.nn import functional as F

from robench.defenses import AdversarialRecipe, Paper


class Paired(AdversarialRecipe):
    """CE(x') + weight·mean squared distance of the logits of x and x'."""

    name = "paired"
    paper = Paper("Adversarial Logit Pairing (Kannan et al.)", "https://arxiv.org/abs/1803.06373",
                  "arXiv", 2018)
    weight: float = Field(0.5, ge=0)

    def terms(self, context, batch):
        network, labels = context.network, batch.labels
        adv_inputs = self.maximise(
            context,
            lambda points: F.cross_entropy(network(points), labels, reduction="none"),
            batch.inputs,
            batch.inputs,
        )
        clean, adv = network(batch.inputs), network(adv_inputs)
        return {
            "adversarial": F.cross_entropy(adv, labels),
            "paired": self.weight * (clean - adv).square().mean(),
        }
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with the recipe, importable for one test."""
    # A name of its own in each test, because Python keeps what it has imported.
    name = f"paired_{tmp_path.name}".replace("-", "_")
    points = {"robench.recipes": {"paired": f"{name}:Paired"}}
    install(tmp_path / "site", "paired-recipe", "1.0", points, {f"{name}.py": RECIPE})
    monkeypatch.syspath_prepend(tmp_path / "site")
    return name


def one_step(recipe: str, folder: Path) -> TrainingJob:
    settings = {"epochs": 1, "batch_size": 1000, "attack_steps": 1, "weight": 2}
    return resolve(
        recipe, "digits", architecture=TINY, folder=folder, device="cpu", settings=settings
    )


def test_a_step_on_digits(module: str, tmp_path: Path) -> None:
    job = one_step(f"{module}:Paired", tmp_path / "model")
    card = read_card(train(job, progress=False))
    assert (card.defense, card.provenance.year) == ("paired", 2018)
    assert card.provenance.recipe["weight"] == 2
    command = str(card.provenance.command)
    assert command.startswith(f"robench train {module}:Paired --dataset digits")
    assert command.endswith("--set attack_steps=1 --set weight=2.0")
    assert card.provenance.versions["recipe"].startswith(f"{module}:Paired ")
    before = job.network.state_dict()
    after = load_file(tmp_path / "model" / "weights.safetensors")
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    assert load_model(tmp_path / "model")(job.data.probe).shape == (4, 10)


def test_the_command_line_trains_it(module: str, tmp_path: Path) -> None:
    settings = ("--set", "batch_size=1000", "--set", "attack_steps=1", "--arch", TINY.name)
    folder = tmp_path / "model"
    done = invoke(
        *("train", f"{module}:Paired", "--epochs", 1, *settings, "--arch-arg", "width=4"),
        *("--quiet", "--out", folder),
    )
    assert (done.code, done.out.strip()) == (0, str(folder / "card.toml"))
    assert read_card(folder / "card.toml").defense == "paired"


def test_other_code_does_not_go_on_with_an_interrupted_run(module: str, tmp_path: Path) -> None:
    job = one_step(f"{module}:Paired", tmp_path / "model")
    TrainingState(job.identity, 0, {}, {}).save(job.folder)
    source = tmp_path / "site" / f"{module}.py"
    source.write_text(RECIPE.replace("square()", "abs()"))
    changed = one_step(f"{module}:Paired", job.folder)
    with pytest.raises(UsageError, match=r"with other settings \(recipe was"):
        train(changed, progress=False)


def test_an_entry_point_gives_it_a_name(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read once in a process; this test's come and go.
    monkeypatch.delitem(vars(RECIPES), "_entry_points", raising=False)
    assert "paired" in list(RECIPES)
    assert RECIPES.summary("paired") == "from paired-recipe 1.0"
    assert one_step("paired", Path("unused")).recipe.name == "paired"
    vars(RECIPES).pop("_entry_points")
    del RECIPES._targets["paired"]


def test_what_is_no_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="'collections:OrderedDict' is no recipe"):
        one_step("collections:OrderedDict", Path("unused"))
