"""Suites: versioned data files that name attacks and their parameters.

A suite is a TOML file. Each ``[[attacks]]`` table is an :class:`~robench.records.AttackSpec`;
``include = "name"`` instead takes over the entries of another suite. A user's own file works the
same way as the ones that come with robench. A file that names classes as ``package.module:Class``
would run their code: it is read only where its author is trusted.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from robench.attacks.catalogue import ATTACKS, imports_code
from robench.errors import UsageError
from robench.files import read_text
from robench.records import AttackSpec, Suite, parse
from robench.registry import names_code, unknown_name, untrusted_target
from robench.threat_models import CORRUPTIONS, Norm
from robench.trust import is_trusted

__all__ = ["find_attack", "has_corruptions", "list_suites", "load_suite"]

_FOLDER = Path(__file__).parent


def list_suites() -> list[str]:
    """Names of the suites that come with robench."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_suite(name: str | Path, *, trust_code: bool = False) -> Suite:
    """Load a suite by name, or from a file.

    Args:
        name: a suite that comes with robench, or the path of a TOML file.
        trust_code: let the file name classes to import, ``package.module:Class``, though the user
            has not trusted it (:mod:`robench.trust`). Attacks of installed packages with an entry
            point ``robench.attacks`` need no trust.

    Raises:
        UnknownNameError: no such suite; near misses are listed.
        UsageError: the file is not valid, or names code and is not trusted.
    """
    return _load(name, (), trust_code)


def has_corruptions(suite: Suite) -> bool:
    """Whether it has an entry for corruptions, which have no adversary."""
    return any(CORRUPTIONS in spec.norms for spec in suite.attacks)


def find_attack(name: str, norm: Norm) -> AttackSpec:
    """An entry of the suites that come with robench, or an attack with its default parameters.

    Args:
        name: ``pgd-20``, ``aa-standard``; ``square``.
        norm: where an entry is another under another norm.

    Raises:
        UnknownNameError: there is none under this norm; near misses are listed.
    """
    suites = sorted(list_suites(), key=lambda suite: suite != "standard")
    found: dict[str, AttackSpec] = {}
    for suite in suites:
        for spec in load_suite(suite).for_norm(norm):
            found.setdefault(spec.name, spec)
    for own in ATTACKS:
        found.setdefault(own, AttackSpec(name=own, attack=own))
    if name not in found:
        raise unknown_name("attack", name, list(found))
    return found[name]


def _load(name: str | Path, including: tuple[Path, ...], trust_code: bool) -> Suite:
    path = _find(name, including)
    if path in including:
        raise UsageError("suites include each other in a circle", where=path)
    try:
        content: dict[str, Any] = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the suite: {error}", where=path) from error
    entries = content.get("attacks", [])
    attacks: list[Any] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict) and "include" in entry:
            if len(entry) > 1:
                raise UsageError(
                    "an include takes over the entries of another suite as they are",
                    where=path,
                    hint=f"Remove {', '.join(sorted(set(entry) - {'include'}))}",
                )
            attacks += _load(str(entry["include"]), (*including, path), trust_code).attacks
        else:
            attacks.append(entry)
    content = {"name": path.stem, **content, "attacks": attacks}
    suite = parse(Suite, content, UsageError, where=path)
    for spec in suite.attacks:
        for stage in spec.stages or (spec,):
            if imports_code(stage.attack) and not (trust_code or is_trusted(path)):
                raise untrusted_target("attack", stage.attack, f"suite {suite.name!r}", path)
            through = stage.through or ""
            if names_code(through) and not (trust_code or is_trusted(path)):
                raise untrusted_target("stand-in", through, f"suite {suite.name!r}", path)
    return suite


def _find(name: str | Path, including: tuple[Path, ...]) -> Path:
    if str(name) in list_suites():
        return _FOLDER / f"{name}.toml"
    path = Path(name)
    if including and not path.is_absolute():  # an include is relative to the file it stands in
        path = including[-1].parent / path
    if path.suffix == ".toml" and os.path.isfile(path):
        return path.resolve()
    raise unknown_name("suite", str(name), list_suites())
