"""What ``robench.evaluate`` gives: its numbers are those of its rows, its tensors are the data's."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import robench
from robench.errors import ModelError, RobenchError, UnknownNameError, UsageError
from robench.models import wrap_module
from robench.results import Store

pytestmark = pytest.mark.usefixtures("unexamined")

N = 12
EPS = 0.05
ALL = [
    *("Evaluation", "Request", "__version__", "attack", "check", "compare", "evaluate", "export"),
    *("judge", "leaderboard", "list_models", "load_dataset", "load_model", "plot", "prepare"),
    *("transfer", "validate"),
]


class Line(nn.Module):
    """Two classes by a weighted mean of the pixels, far from both ends of their range."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16).reshape(1, 4, 4))
        self.bias = bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        score = ((inputs - 0.5) * self.weight).sum(dim=(1, 2, 3)) + self.bias
        return torch.stack([score, -score], dim=1)


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """All right, at rising distances from the boundary; the first half breaks within EPS."""
    away = torch.linspace(0.02, 0.098, N) * Line().weight.abs().sum().item()
    direction = Line().weight.detach() / Line().weight.detach().square().sum()
    sign = torch.tensor([1.0, -1.0]).repeat(N // 2)
    inputs = 0.5 + (sign * away).reshape(-1, 1, 1, 1) * direction
    return inputs, (sign < 0).long()


def evaluated(name: str = "line", bias: float = 0.0, **options: object) -> robench.Evaluation:
    return robench.evaluate(
        Line(bias),
        samples(),
        "quick",
        threat_model=f"Linf-{EPS}",
        input={"channels": 1},
        name=name,
        device="cpu",
        precision="fp32",
        **options,
    )


@pytest.fixture(scope="module")
def evaluation() -> robench.Evaluation:
    return evaluated(save_adversarial=True)


def broken() -> np.ndarray:
    """Where the closed form breaks: the score is within EPS times the weights' L1 norm."""
    inputs, _ = samples()
    score = (Line()(inputs)[:, 0]).abs()
    return (score < EPS * Line().weight.abs().sum()).numpy()


def test_numbers_are_the_closed_forms(evaluation: robench.Evaluation) -> None:
    expected = 100 * (1 - broken().mean())
    assert 0 < expected < 100
    assert evaluation.robust_acc == pytest.approx(expected)
    assert evaluation.clean_acc == 100
    assert evaluation.interval.low < expected < evaluation.interval.high
    assert evaluation.by_attack == {
        "fgsm": pytest.approx(expected),
        "pgd-20": pytest.approx(expected),
    }
    frame = evaluation.to_frame()
    assert frame["attack"].tolist() == ["fgsm", "pgd-20"]
    assert frame["broken"].tolist() == [broken().sum()] * 2
    assert frame["n"].tolist() == [N, N]
    rows = evaluation.samples
    assert len(rows) == 2 * N
    assert (rows[rows["attack"] == "fgsm"]["outcome"] == "broken").tolist() == broken().tolist()
    assert [stored.record.attack.name for stored in evaluation] == ["fgsm", "pgd-20"]


def test_it_shows_itself(evaluation: robench.Evaluation) -> None:
    assert "pgd-20" in repr(evaluation)
    hostile = evaluated(name="<script>alert(1)</script>")
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()
    labels = [text.get_text() for text in evaluation.plot().axes[0].get_yticklabels()]
    assert labels == ["line"]


def test_adversarial_inputs_are_in_the_datas_order(evaluation: robench.Evaluation) -> None:
    inputs, labels = samples()
    away = torch.where(labels == 0, -1.0, 1.0).reshape(-1, 1, 1, 1)
    expected = inputs + EPS * away * Line().weight.sign()
    torch.testing.assert_close(evaluation.adversarial("fgsm"), expected.detach(), rtol=0, atol=1e-6)
    with pytest.raises(UnknownNameError, match=r"'fgsn'.*fgsm"):
        evaluation.adversarial("fgsn")
    with pytest.raises(UnknownNameError, match="unknown model"):
        evaluation.adversarial("fgsm", model="curve")
    with pytest.raises(UsageError, match="save_adversarial=True"):
        evaluated().adversarial("fgsm")


@pytest.mark.parametrize("few", [1, N])
def test_an_attack_on_tensors_is_the_evaluations(evaluation: robench.Evaluation, few: int) -> None:
    """Of a batch that lacks a class, too."""
    inputs, labels = samples()
    adversarial = robench.attack(
        *(Line(), inputs[:few], labels[:few], "fgsm"),
        eps=EPS,
        input={"channels": 1},
        device="cpu",
        precision="fp32",
    )
    assert torch.equal(adversarial, evaluation.adversarial("fgsm")[:few])


def test_a_model_that_works_in_place_has_the_plain_one_s_numbers(
    evaluation: robench.Evaluation,
) -> None:
    inputs, labels = samples()
    kept = inputs.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), Line())
    options = {"input": {"channels": 1}, "device": "cpu", "precision": "fp32"}
    found = robench.attack(model, inputs, labels, "fgsm", eps=EPS, **options)
    assert torch.equal(found, evaluation.adversarial("fgsm"))
    assert torch.equal(inputs, kept)


class Refuses(Line):
    """Fails where gradients are asked for, on inputs that are brighter than ``most`` somewhere."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.requires_grad and bool((inputs > self.most).any()):
            raise RuntimeError("no gradients")
        return super().forward(inputs)


def test_where_a_model_fails_under_attack_it_is_said() -> None:
    inputs, labels = samples()
    options = {"eps": EPS, "input": {"channels": 1}, "device": "cpu", "precision": "fp32"}
    with pytest.raises(ModelError, match=r"failed on 12 of 12 inputs under fgsm: .*no gradients"):
        robench.attack(Refuses(0.0), inputs, labels, "fgsm", **options)
    most = float(inputs.flatten(1).amax(dim=1).sort().values[-4])
    with pytest.warns(UserWarning, match=r"failed on 3 of 12 inputs under fgsm.*no gradients"):
        found = robench.attack(Refuses(most), inputs, labels, "fgsm", **options)
    still = (found == inputs).flatten(1).all(dim=1)
    assert torch.equal(still, (inputs > most).flatten(1).any(dim=1))


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.double(),
        lambda x: x.numpy(),
        lambda x: x.double().numpy(),
        lambda x: x.numpy().transpose(0, 2, 3, 1),
        lambda x: x.squeeze(1),
        lambda x: x.numpy().tolist(),
    ],
)
def test_an_attack_takes_inputs_as_an_evaluation_does(
    evaluation: robench.Evaluation, given: Any
) -> None:
    inputs, labels = samples()
    options = {"eps": EPS, "input": {"channels": 1}, "device": "cpu", "precision": "fp32"}
    found = robench.attack(Line(), given(inputs), labels.numpy(), "fgsm", **options)
    assert torch.equal(found, evaluation.adversarial("fgsm"))


def test_an_attack_scales_bytes_and_refuses_other_inputs_in_one_line() -> None:
    inputs, labels = samples()
    options = {"eps": EPS, "input": {"channels": 1}, "device": "cpu"}
    stored = (inputs * 255).round().to(torch.uint8)
    found = robench.attack(Line(), stored, labels, "fgsm", **options)
    assert torch.equal(found, robench.attack(Line(), stored / 255, labels, "fgsm", **options))
    half = robench.attack(Line(), inputs.half(), labels, "fgsm", **options)
    assert torch.equal(
        half, robench.attack(Line(), inputs.half().float(), labels, "fgsm", **options)
    )
    for wrong in (inputs[0, 0, 0], inputs[:, None], inputs * 255, inputs[:5], 3, None, "inputs"):
        with pytest.raises(RobenchError) as raised:
            robench.attack(Line(), wrong, labels, "fgsm", **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(RobenchError, match=r"empty|no samples"):
        robench.attack(Line(), inputs[:0], labels[:0], "fgsm", **options)
    with pytest.raises(UsageError, match="3 is not a threat model"):
        robench.evaluate(Line(), samples(), "quick", threat_model=3)
    with pytest.raises(RobenchError, match=r"the network is in torch\.float64"):
        robench.attack(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double(), inputs, labels, **options
        )


def test_a_module_that_cannot_be_copied_is_wrapped_as_it_is(
    evaluation: robench.Evaluation,
) -> None:
    """As the refusal says."""
    options = {"threat_model": f"Linf-{EPS}", "device": "cpu", "precision": "fp32"}
    module = Line()
    module.last = module.weight * 1  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"robench\.models\.wrap_module\(module, .*share=True\)"):
        robench.evaluate(module, samples(), "quick", input={"channels": 1}, **options)
    shared = wrap_module(module, num_classes=2, name="line", share=True, input={"channels": 1})
    found = robench.evaluate(shared, samples(), "quick", **options)
    assert found.robust_acc == evaluation.robust_acc


def test_attacks_have_the_names_of_entries_and_of_attacks() -> None:
    inputs, labels = samples()
    options = {"eps": EPS, "input": {"channels": 1}, "device": "cpu"}
    found = robench.attack(Line(), inputs, labels, "square", **options)
    assert float((found - inputs).abs().max()) <= EPS + 1e-6
    with pytest.raises(UnknownNameError, match=r"'pgd-2'.*pgd-20"):
        robench.attack(Line(), inputs, labels, "pgd-2", **options)
    with pytest.raises(UsageError, match="unknown norm 'L3'"):
        robench.attack(Line(), inputs, labels, norm="L3", **options)


def test_what_is_saved_is_what_the_command_would_have_left(
    evaluation: robench.Evaluation, tmp_path: Path, saved_unseen: None
) -> None:
    files = evaluation.save(tmp_path / "kept")
    assert files[0] == tmp_path / "kept" / "leaderboard.csv"
    store = Store(tmp_path / "kept")
    assert [s.record for s in store.records()] == sorted(
        (s.record for s in evaluation), key=lambda record: record.key
    )
    for stored in evaluation:
        key = stored.record.key
        pd.testing.assert_frame_equal(store.read(key).table, stored.table)
        kept = torch.from_numpy(store.adversarial_rows(key)[:])
        assert torch.equal(kept, evaluation.adversarial(stored.record.attack.name))
    board = robench.leaderboard(tmp_path / "kept")
    pd.testing.assert_frame_equal(board, robench.leaderboard(evaluation))
    assert board["robust_acc"].tolist() == [evaluation.robust_acc]


def test_two_are_compared_sample_by_sample(evaluation: robench.Evaluation) -> None:
    other = evaluated(name="leaning", bias=0.3)
    table = robench.compare(evaluation, other).table.set_index("quantity")
    row = table.loc["robust_acc"]
    assert (row["baseline"], row["value"]) == (evaluation.robust_acc, other.robust_acc)
    assert row["difference"] == pytest.approx(other.robust_acc - evaluation.robust_acc)
    robust = [~e.result.robust for e in (evaluation, other)]
    assert row["only_baseline"] == (~robust[0] & robust[1]).sum()
    with pytest.raises(UsageError, match="two of a kind"):
        robench.compare("line", other)
    with pytest.raises(UsageError, match="between 0 and 1"):
        robench.compare(evaluation, other, level=95)


def test_an_evaluation_is_exported_and_gated_as_its_folder_is(
    evaluation: robench.Evaluation, tmp_path: Path
) -> None:
    other = evaluated(name="leaning", bias=0.3)
    for stored in (*evaluation, *other):
        Store(tmp_path / "kept").write(stored.record, stored.samples)
    of_one = robench.export(evaluation, "markdown", intervals=True)
    assert "line" in of_one
    assert "leaning" not in of_one
    folder = tmp_path / "kept"
    assert robench.export(folder, "markdown", models=["line"], intervals=True) == of_one
    assert robench.export(folder, "parquet", tmp_path / "all.parquet", samples=True) == [
        tmp_path / "all.parquet"
    ]
    assert len(pd.read_parquet(tmp_path / "all.parquet")) == 4 * N
    with pytest.warns(UserWarning, match="stays empty for line: "):
        robench.export(evaluation, "robustbench", tmp_path / "model_info")
    answer = robench.check(other, evaluation, margin=50)
    named = robench.check("leaning", "line", folder, margin=50, eps=str(EPS))
    assert repr(answer) == repr(named)
    assert answer.exit_code in (0, 1, 2)
    with pytest.raises(UnknownNameError, match=r"markdwn.*markdown"):
        robench.export(folder, "markdwn")
    with pytest.raises(UnknownNameError, match="filter 'modle'"):
        robench.export(folder, modle="line")
    with pytest.raises(UsageError, match="two of a kind"):
        robench.check("line", other)


def test_nothing_is_left_behind() -> None:
    found = evaluated()
    assert found[0].path is not None
    folder = found[0].path.parents[2]
    assert folder.is_dir()
    del found
    gc.collect()
    assert not folder.exists()


def test_several_results_are_no_one_number() -> None:
    both = evaluated(n=N)
    several = robench.evaluate(
        Line(), samples(), "quick", norm="Linf", eps=f"0.01,{EPS}", input={"channels": 1}
    )
    assert len(several.results) == 2
    assert len(several.to_frame()) == 4
    for name in ("robust_acc", "interval", "clean_acc", "by_attack", "result"):
        assert getattr(both, name) is not None
        with pytest.raises(UsageError, match="2 results"):
            getattr(several, name)


def test_the_interface_is_frozen() -> None:
    assert sorted(robench.__all__) == ALL
    for name in ALL:
        assert getattr(robench, name).__doc__ or name == "__version__"


def test_models_and_data_have_their_names() -> None:
    assert "digits/Linf-0.2/pgd-at" in robench.list_models("digits")
    assert set(robench.list_models("digits")) < set(robench.list_models())
    assert len(robench.load_dataset("digits", n=3)) == 3
