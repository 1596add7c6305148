"""RobustBench, Hugging Face and Every Eval Ever: their words, their types, and what stays empty."""

from __future__ import annotations

import json
from typing import Any

import pytest
from export_material import material

from robench.attacks.suites import load_suite
from robench.errors import UsageError
from robench.exports import FORMATS, Material
from robench.exports.every_eval_ever import evaluation
from robench.exports.model_index import model_index
from robench.exports.robustbench import model_info
from robench.records import Flag, ModelCard, Provenance
from robench.statistics import wilson

CARD = ModelCard(
    name="toy",
    dataset="digits",
    num_classes=2,
    threat_model="Linf-0.2",
    defense="standard",
    architecture={"name": "digits_resnet"},
    weights={"path": "w", "sha256": "0" * 64},
    provenance=Provenance(
        paper="A Paper",
        authors="A and B",
        link="https://example.org",
        venue="ICML",
        year=2020,
        reported={"robust_acc": 55.5},
    ),
)
(STANDARD,) = (s for s in load_suite("aa-standard").for_norm("Linf"))


def info(given: Material, card: ModelCard | None = None) -> dict[str, Any]:
    (result,) = given.results
    given.__dict__["cards"] = {} if card is None else {result.model.id: card}
    return model_info(given, result)


def test_model_info_speaks_robustbenchs_words(tmp_path):
    given = material(tmp_path, ("toy", "", "SSSBBC", {"spec": STANDARD}))
    assert info(given, CARD) == {
        "link": "https://example.org",
        "name": "A Paper",
        "authors": "A and B",
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": "digits",
        "venue": "ICML 2020",
        "architecture": "digits-resnet",
        "eps": "0.2",
        "clean_acc": "83.33",
        "reported": "55.50",
        "autoattack_acc": "50.00",
        "external": None,
        "unreliable": False,
        "footnote": "n = 6, seed 0",
    }
    assert [gap.field for gap in given.gaps] == ["additional_data"]


def test_what_no_card_says_stays_empty_and_is_named(tmp_path):
    given = material(tmp_path, ("toy", "pgd-20", "SB"))
    assert info(given)["autoattack_acc"] is None
    whys = {gap.field: gap.why for gap in given.gaps}
    assert whys["link"] == "it has no card"
    assert "aa-standard" in whys["autoattack_acc"]


def test_only_autoattacks_standard_version_counts_as_autoattack(tmp_path):
    other = ("toy", "autoattack", "SSSB")
    assert info(material(tmp_path / "a", other))["autoattack_acc"] is None
    renamed = STANDARD.model_copy(update={"name": "another-name"})
    given = material(tmp_path / "b", other, ("toy", "", "SSBB", {"spec": renamed}))
    assert info(given)["autoattack_acc"] == "50.00"


@pytest.mark.parametrize(("severity", "unreliable"), [("note", False), ("severe", True)])
def test_severe_flags_make_it_unreliable(tmp_path, severity, unreliable):
    flag = Flag(name="randomised", severity=severity, evidence="5 passes differ")
    found = info(material(tmp_path, ("toy", "", "SB", {"spec": STANDARD, "flags": [flag]})))
    assert found["unreliable"] is unreliable
    assert "5 passes differ" in found["footnote"]


def test_errored_samples_make_it_unreliable(tmp_path):
    assert info(material(tmp_path, ("toy", "a", "SE")))["unreliable"] is True


def test_each_result_has_a_file_that_leads_nowhere(tmp_path):
    records = [("../../x", "a", "SB"), ("X", "a", "SB"), ("x", "a", "SB"), ("x", "a", "SSB")]
    given = material(tmp_path, *records)
    paths = FORMATS["robustbench"].write(given, tmp_path / "out")
    assert len({str(path).casefold() for path in paths}) == 4
    for path in paths:
        assert path.parent == tmp_path / "out" / "digits" / "Linf-0.2"
        json.loads(path.read_bytes())


def test_a_model_card_block_is_what_the_hub_reads(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    yaml = pytest.importorskip("yaml")
    name = 'a: "b" #\n- c'
    other = {"threat": "L2-0.5"}
    given = material(
        tmp_path,
        *((name, "pgd-20", "SSSBBC"), (name, "cw", "SSBBBC"), (name, "cw", "SBBBBC", other)),
    )
    content = yaml.safe_load(model_index(given))
    card = hub.ModelCard(f"---\n{model_index(given)}---\nText\n")
    assert card.data.to_dict() == content
    assert content["model-index"][0]["name"] == 'a: "b" #\\n- c'
    found = {result.metric_name: result for result in card.data.eval_results}
    assert found["Clean accuracy"].metric_value == 83.33
    worst = found["Robust accuracy, worst case at Linf-0.2"]
    limits = wilson(2, 6).scaled(100)
    assert (worst.metric_value, worst.metric_type) == (33.33, "robust_accuracy")
    assert worst.metric_args["low"] == pytest.approx(limits.low, abs=0.005)
    assert found["Robust accuracy under pgd-20 at Linf-0.2"].metric_value == 50.0
    assert worst.task_type == "image-classification"
    assert worst.dataset_args["eps"] == "0.2"
    assert found["Robust accuracy under cw at L2-0.5"].dataset_args["eps"] == "0.5"


def test_a_model_card_is_of_one_model(tmp_path):
    # The hub would show the figures of all under the last one's name.
    with pytest.raises(UsageError, match="one model, and there are 2: a, b"):
        model_index(material(tmp_path, ("a", "cw", "S"), ("b", "cw", "S")))


# The fields of Every Eval Ever 0.2.2 that robench fills, by type; `?` is optional.
EVALUATION = {
    "schema_version": str,
    "evaluation_id": str,
    "evaluation_timestamp?": str,
    "retrieved_timestamp": str,
    "source_metadata": {
        "source_name?": str,
        "source_type": ("evaluation_run", "documentation"),
        "source_organization_name": str,
        "evaluator_relationship": ("first_party", "third_party", "collaborative", "other"),
    },
    "eval_library": {"name": str, "version": str},
    "model_info": {"name": str, "id": str, "additional_details?": {str: str}},
    "evaluation_results": [
        {
            "evaluation_result_id?": str,
            "evaluation_name": str,
            "source_data": {
                "dataset_name": str,
                "source_type": ("other",),
                "source_id?": str,
                "additional_details?": {str: str},
            },
            "metric_config": {
                **dict.fromkeys(["evaluation_description?", "metric_id?", "metric_name?"], str),
                **dict.fromkeys(["metric_kind?", "metric_unit?"], str),
                "metric_parameters?": {str: (str, float, int, bool, type(None))},
                "lower_is_better": bool,
                "score_type?": ("binary", "continuous", "levels"),
                "min_score?": float,
                "max_score?": float,
            },
            "score_details": {
                "score": float,
                "details?": {str: str},
                "uncertainty?": {
                    "confidence_interval?": {
                        "lower": float,
                        "upper": float,
                        "confidence_level?": float,
                        "method?": str,
                    },
                    "num_samples?": int,
                },
            },
        }
    ],
}


def fits(value: Any, form: Any, place: str = "") -> None:
    """``value`` has all fields of ``form`` that are not optional, no others, and their types."""
    if isinstance(form, list):
        assert isinstance(value, list), place
        for item in value:
            fits(item, form[0], place)
    elif isinstance(form, dict) and str in form:
        assert all(isinstance(name, str) for name in value), place
        assert all(isinstance(inner, form[str]) for inner in value.values()), place
    elif isinstance(form, dict):
        known = {name.rstrip("?"): inner for name, inner in form.items()}
        assert set(value) <= set(known), place
        assert {name for name in form if not name.endswith("?")} <= set(value), place
        for name, inner in value.items():
            fits(inner, known[name], f"{place}.{name}")
    elif isinstance(form, tuple) and all(isinstance(option, str) for option in form):
        assert value in form, place
    else:
        assert isinstance(value, form), place


def test_every_eval_ever_gets_fields_of_its_schema(tmp_path):
    given = material(
        tmp_path, ("toy", "pgd-20", "SSSBBC"), ("toy", "cw", "SSBBBC"), organization="Us"
    )
    (path,) = FORMATS["every-eval-ever"].write(given, tmp_path / "out")
    content = json.loads(path.read_bytes())
    fits(content, EVALUATION)
    scores = {
        score["evaluation_name"]: score["score_details"]["score"]
        for score in content["evaluation_results"]
    }
    assert scores == {
        "digits: clean accuracy": pytest.approx(500 / 6),
        "digits: robust accuracy": pytest.approx(200 / 6),
        "digits: robust accuracy under pgd-20": 50.0,
        "digits: robust accuracy under cw": pytest.approx(200 / 6),
    }
    ids = [score["evaluation_result_id"] for score in content["evaluation_results"]]
    assert len(set(ids)) == len(ids)
    first = content["evaluation_results"][0]["score_details"]["uncertainty"]
    assert first["num_samples"] == 6
    # 2026-01-02T03:04:05Z, when the records were made.
    assert content["retrieved_timestamp"] == "1767323045"


def test_every_eval_ever_validates_with_its_own_package(tmp_path):
    package = pytest.importorskip("every_eval_ever", reason="needs the package every-eval-ever")
    given = material(tmp_path, ("toy", "pgd-20", "SSSBBC"))
    types = pytest.importorskip(f"{package.__name__}.eval_types")
    types.EvaluationLog.model_validate(evaluation(given.results[0], "Us", "no_flag_raised"))


def test_who_evaluated_has_to_be_said(tmp_path):
    given = material(tmp_path, ("toy", "a", "SB"))
    with pytest.raises(UsageError, match=r"source_organization_name.*--organization"):
        FORMATS["every-eval-ever"].write(given, tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/*"))
