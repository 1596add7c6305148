"""Formats by name. Naming them loads no format and no pandas."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from robench.errors import UsageError
from robench.files import atomic_write, ensure_writable
from robench.registry import Registry, import_target

if TYPE_CHECKING:
    from robench.exports.material import Material


@dataclass(frozen=True)
class Format:
    """One form that results can be written in.

    Attributes:
        make: the function, or ``"package.module:function"``. Of a ``text`` it takes a
            :class:`~robench.exports.material.Material` and returns the text, of a ``file`` the bytes;
            of a ``folder`` it takes the folder too, writes into it, and returns the files' paths.
        kind: what it makes. Only a text can be printed.
        summary: one line for people.
        takes: which :class:`~robench.exports.material.Choices` it looks at; any other is refused.
    """

    make: str | Callable[..., Any]
    kind: Literal["text", "file", "folder"]
    summary: str
    takes: tuple[str, ...] = ()

    def write(self, material: Material, out: Path | None) -> str | list[Path]:
        """Write ``material`` to ``out``, a file or a folder.

        Returns:
            The paths of what was written; where ``out`` is None, the text itself.

        Raises:
            UsageError: a choice that this format does not look at, no ``out`` for what is no text, or
                what the format needs and the records do not hold.
            StoreError: it cannot be written, or a record is damaged.
        """
        for name, value in vars(material.choices).items():
            if value != getattr(type(material.choices), name, None) and name not in self.takes:
                raise UsageError(
                    f"--{name} says nothing to this format",
                    hint="It takes "
                    + (", ".join(f"--{n}" for n in self.takes) or "no such option"),
                )
        make = cast(
            Callable[..., Any],
            import_target(self.make) if isinstance(self.make, str) else self.make,
        )
        if out is None:
            if self.kind != "text":
                raise UsageError(
                    f"this format is a {self.kind}, which cannot be printed",
                    hint="Name it with --out",
                )
            return str(make(material))
        if self.kind == "folder":
            ensure_writable(out, "--out")
            return list(make(material, out))
        if os.path.isdir(out):
            raise UsageError(
                "is a folder, and this format is one file", where=out, hint="Name a file"
            )
        made = make(material)
        atomic_write(out, made.encode() if self.kind == "text" else made)
        return [out]


FORMATS: Registry[Format] = Registry("export format", "robench.exports")
"""Formats by name, in the order in which they are listed."""

_TABLE = ("columns", "digits")
_SHOWN = (*_TABLE, "intervals")
_GATE = ("against", "policy")

for _name, _target, _kind, _summary, _takes in (
    ("latex", "latex:latex", "text", "a table for a paper, with booktabs", _SHOWN),
    ("markdown", "tables:markdown_table", "text", "a table for a page", _SHOWN),
    ("csv", "tables:csv", "text", "the leaderboard, or all samples", ("columns", "samples")),
    ("parquet", "tables:parquet", "file", "likewise, with types", ("columns", "samples")),
    ("robustbench", "robustbench:write_model_info", "folder", "RobustBench's model_info files", ()),
    ("model-index", "model_index:model_index", "text", "a block for a Hugging Face model card", ()),
    (
        *("every-eval-ever", "every_eval_ever:write_evaluations", "folder"),
        *("Every Eval Ever's JSON, a file a model", ("organization",)),
    ),
    ("junit", "gate_answers:junit", "text", "the gate's answer as JUnit XML", _GATE),
    ("sarif", "gate_answers:sarif", "text", "the gate's answer for code scanning", _GATE),
    ("png", "kept_inputs:write_pngs", "folder", "kept adversarial inputs in 8 bits", ()),
    ("tensorboard", "tensorboard:write_events", "folder", "figures and kept traces as events", ()),
):
    _format = Format(f"robench.exports.{_target}", cast(Any, _kind), _summary, _takes)
    FORMATS.add(_name, _format, _summary)
