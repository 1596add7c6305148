"""A LaTeX table with booktabs. What others named is text, whatever TeX would read in it."""

from __future__ import annotations

import re
import unicodedata

from robench.exports.material import Material
from robench.exports.tables import Cell, Grid, make_grid
from robench.text import visible

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    # At the start of a row these would be an argument of the row before.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    # Characters that papers write as mathematics.
    "ε": r"$\varepsilon$",
    "∞": r"$\infty$",
    "ℓ": r"$\ell$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"'}
_LETTERS = {
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "å": r"\aa{}",
    "Å": r"\AA{}",
    "ç": r"\c{c}",
    "Ç": r"\c{C}",
}
_ALIGNED = {True: "r", False: "l"}


def latex(material: Material) -> str:
    """A ``tabular`` that needs the package booktabs alone; the best in bold.

    It starts with comments that say how to use it and what was measured.

    Raises:
        UnknownNameError, UsageError: as :func:`robench.exports.tables.make_grid`.
    """
    grid = make_grid(material)
    width = len(grid.header)
    lines = [r"% needs \usepackage{booktabs}; percent, the best of each block in bold"]
    if material.choices.intervals:
        lines.append("% in parentheses 95 % Wilson intervals")
    lines += [rf"\begin{{tabular}}{{{''.join(_ALIGNED[n] for n in grid.numeric)}}}", r"\toprule"]
    lines.append(_row([tex(title) for title in grid.header]))
    for (group, rows), numbers in zip(grid.blocks, grid.doubted, strict=True):
        lines.append(r"\midrule")
        if len(grid.blocks) == 1:
            lines.insert(0, f"% {visible(group)}")
        else:
            lines += [_row([rf"\multicolumn{{{width}}}{{l}}{{{tex(group)}}}"]), r"\midrule"]
        for cells, remark in zip(rows, numbers, strict=True):
            texts = [_cell(*both) for both in zip(cells, grid.numeric, strict=True)]
            texts[0] += rf"\textsuperscript{{{remark}}}" if remark else ""
            lines.append(_row(texts))
    lines.append(r"\bottomrule")
    lines += _remarks(grid, width)
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def tex(text: str) -> str:
    """``text`` as TeX shows it, in one line: none of it is a command.

    Letters with an accent become accents; what pdfLaTeX has no letter for is shown by its number, as
    ``U+4E2D``.
    """
    # Two hyphens would make a dash.
    parts = re.split("(?<=-)(?=-)", visible(text))
    return "{}".join("".join(map(_character, part)) for part in parts)


def _character(letter: str) -> str:
    if (known := _ESCAPES.get(letter) or _LETTERS.get(letter)) is not None:
        return known
    if " " <= letter <= "~":
        return letter
    parts = unicodedata.normalize("NFD", letter)
    base, mark = parts[0], parts[1:]
    if mark in _ACCENTS and base.isascii() and base.isalpha():
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base)
        return rf"\{_ACCENTS[mark]}{{{dotless}}}"
    return f"U+{ord(letter):04X}"


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell, numeric: bool) -> str:
    if not cell.text:
        return "--"
    shown = tex(cell.text)
    if numeric and shown.startswith("-"):
        shown = f"$-${shown[1:]}"
    shown = rf"\textbf{{{shown}}}" if cell.best else shown
    return f"{shown} ({cell.low}--{cell.high})" if cell.low else shown


def _remarks(grid: Grid, width: int) -> list[str]:
    return [
        _row(
            [
                rf"\multicolumn{{{width}}}{{l}}{{\footnotesize \textsuperscript{{{place}}} {tex(said)}}}"
            ]
        )
        for place, said in enumerate(grid.remarks, 1)
    ]
