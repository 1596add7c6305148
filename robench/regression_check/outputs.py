"""The gate's answer for machines and people: JSON, JUnit XML, Markdown."""

import json
from dataclasses import asdict
from xml.etree import ElementTree

from robench.formatting import number, plain, signed_interval
from robench.regression_check.gate import CheckResult, CriterionResult, Verdict
from robench.text import markdown

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
