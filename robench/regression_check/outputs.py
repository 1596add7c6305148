"""The gate's answer for machines and people: JSON, JUnit XML, SARIF, Markdown."""

import json
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import robench
from robench.formatting import number, plain, signed_interval
from robench.regression_check.gate import CheckResult, CriterionResult, Verdict
from robench.text import markdown

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULE = "No loss of {} beyond the policy's margin"

_MARKS = {
    Verdict.NOT_WORSE: "✅",
    Verdict.WORSE: "❌",
    Verdict.CANNOT_TELL: "❔",
    Verdict.NOT_MEASURED: "–",
}


def check_json(result: CheckResult) -> str:
    """All figures; undefined ones are null."""
    content = {
        "candidate": result.candidate,
        "baseline": result.baseline,
        "group": result.group,
        "verdict": result.verdict.value,
        "exit_code": result.exit_code,
        "n_needed": result.n_needed,
        "criteria": [plain(asdict(item)) for item in result.criteria],
        "policy": result.policy.model_dump(mode="json"),
        "notes": list(result.notes),
        "problems": list(result.problems),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def check_junit(result: CheckResult) -> str:
    """JUnit XML: a test case a criterion.

    Worse is a failure, undecided an error, not measured skipped (an error where required); each
    problem is an error of its own.
    """
    tests = str(len(result.criteria) + len(result.problems))
    suite = ElementTree.Element("testsuite", name=f"robench check {result.candidate}", tests=tests)

    def case(name: str, kind: str | None, text: str) -> None:
        element = ElementTree.SubElement(
            suite, "testcase", classname=f"robench.check.{result.candidate}", name=name
        )
        if kind is None:
            ElementTree.SubElement(element, "system-out").text = text
        else:
            ElementTree.SubElement(element, kind, message=text)

    for item in result.criteria:
        kind = {
            Verdict.WORSE: "failure",
            Verdict.CANNOT_TELL: "error",
            Verdict.NOT_MEASURED: "error" if item.required else "skipped",
        }.get(item.verdict)
        case(item.quantity, kind, _sentence(item))
    for place, problem in enumerate(result.problems, 1):
        case(f"problem_{place}", "error", problem)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"*/{tag}"))))
    ElementTree.indent(suite)
    body = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def check_sarif(result: CheckResult, about: Path) -> str:
    """SARIF 2.1.0, as code scanning takes it: a result a criterion and problem.

    Worse is an error; undecided, and not measured although required, a warning; the rest is ``pass`` or
    ``notApplicable``, which CI does not show. Code scanning shows only what has a place in the
    repository: all results are put at the first line of ``about``.
    """
    rules = [item.quantity for item in result.criteria]
    rules += ["problem"] if result.problems else []
    found = [(item.quantity, *_sarif_kind(item), _sentence(item)) for item in result.criteria]
    found += [("problem", "fail", "error", problem) for problem in result.problems]
    uri = about.as_uri() if about.is_absolute() else quote(about.as_posix())
    place = {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}
    name = f"{result.candidate} against {result.baseline}"
    results = [
        {
            "ruleId": rule,
            "ruleIndex": rules.index(rule),
            "kind": kind,
            "level": level,
            "message": {"text": f"{name}: {text}"},
            "locations": [{"physicalLocation": place}],
        }
        for rule, kind, level, text in found
    ]
    run = {
        "tool": {
            "driver": {
                "name": "robench",
                "version": robench.__version__,
                "rules": [{"id": r, "shortDescription": {"text": _RULE.format(r)}} for r in rules],
            }
        },
        "invocations": [{"executionSuccessful": True, "exitCode": result.exit_code}],
        "results": results,
        "properties": {"verdict": result.verdict.value, "group": result.group},
    }
    content = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _sarif_kind(item: CriterionResult) -> tuple[str, str]:
    if item.verdict is Verdict.NOT_MEASURED and not item.required:
        return "notApplicable", "none"
    level = {Verdict.NOT_WORSE: "none", Verdict.WORSE: "error"}.get(item.verdict, "warning")
    return "pass" if level == "none" else "fail", level


def check_markdown(result: CheckResult) -> str:
    """A summary for a CI page."""
    lines = [
        f"## {_MARKS[result.verdict]} {markdown(result.candidate)} against "
        f"{markdown(result.baseline)}: {result.verdict.value}",
        "",
        f"{markdown(str(result.group))}; one-sided level {result.policy.alpha:g}",
        "",
        "| criterion | baseline | candidate | loss (limits) | margin | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for item in result.criteria:
        digits = _digits(item)
        lines.append(
            f"| {item.quantity} | {number(item.baseline, digits)} "
            f"| {number(item.candidate, digits)} | {_loss(item)} "
            f"| {item.margin:g} | {_MARKS[item.verdict]} {item.verdict.value} |"
        )
    lines.append("")
    lines += [f"- {_advice(i)}" for i in result.criteria if i.verdict is Verdict.CANNOT_TELL]
    lines += [f"- **{problem}**" for problem in result.problems]
    lines += [f"- {note}" for note in result.notes]
    return "\n".join(lines).rstrip() + "\n"


def _sentence(item: CriterionResult) -> str:
    if item.verdict is Verdict.NOT_MEASURED:
        return f"{item.quantity} is not known of both models"
    text = f"{item.quantity}: loss {_loss(item)}, margin {item.margin:g}"
    return f"{text}. {_advice(item)}" if item.verdict is Verdict.CANNOT_TELL else text


def _advice(item: CriterionResult) -> str:
    parts = [f"{item.quantity}: n = {item.n} cannot tell"]
    if item.n_to_pass is not None:
        parts.append(f"about n = {item.n_to_pass} would show a loss below the margin, if none is")
    if item.n_to_fail is not None:
        parts.append(f"about n = {item.n_to_fail} would confirm the observed loss, if it is real")
    if len(parts) == 1:
        parts.append("which n could is not known from figures that do not vary")
    return "; ".join(parts)


def _loss(item: CriterionResult) -> str:
    return signed_interval(item.loss, item.loss_low, item.loss_high, _digits(item))


def _digits(item: CriterionResult) -> int:
    return 2 if item.unit == "points" else 3
