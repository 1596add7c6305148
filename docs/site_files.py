"""What the documentation site is made of: the repository's own files, under their own paths.

A hook of MkDocs. Links between the pages, to benchmarks' tables and to committed results so lead to the
same files in the repository and on the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
    *("benchmarks/results/*.md", "results/*.csv", "results/index.html", "results/plots/**/*.png"),
)
"""What belongs to the site and is not in docs/"""

_FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>")
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Every file under its path in the repository."""
    for file in files.documentation_pages() + files.media_files():
        if file.src_dir == config.docs_dir:
            files.remove(file)
    paths = [path for pattern in ("docs/**/*", *OUTSIDE) for path in ROOT.glob(pattern)]
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to folders lead to what one reads there first."""
    here = (ROOT / page.file.src_uri).parent

    def of_folder(match: re.Match[str]) -> str:
        folder = here / match[1]
        found = next((n for n in ("README.md", "pyproject.toml") if (folder / n).is_file()), None)
        return f"]({match[1]}/{found})" if found and folder.is_dir() else match[0]

    return re.sub(r"\]\(([\w./-]+)\)", of_folder, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings' ``:func:`name```: a link where the page has it, else its name."""
    there = set(re.findall(r'id="([\w.]+)"', html))

    def link(match: re.Match[str]) -> str:
        code = f"<code>{match[1]}</code>"
        names = [match[1], f"robench.{match[1]}", f"robench.{match[1].rpartition('.')[2]}"]
        found = next((name for name in names if name in there), None)
        return f'<a href="#{found}">{code}</a>' if found else code

    return _ROLE.sub(link, html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that fetches anything from elsewhere.

    Raises:
        PluginError: it does.
    """
    found = [tag for tag in _FETCHED.findall(output) if "rel=canonical" not in tag]
    if found:
        raise PluginError(f"{page.file.src_uri} would fetch {found[0]}")
    return output
