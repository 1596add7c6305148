"""All figures that a set of records supports."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from robench.files import atomic_write, read_text
from robench.records import canonical_hash
from robench.registry import identity_of, installed_versions, source_hash
from robench.reporting.catalogue import Report, reports
from robench.reporting.drawing import best_first
from robench.reporting.export import group_slug
from robench.reporting.model_results import GroupKey, ModelResult, by_group
from robench.text import file_name, unused_file_name


def render_plots(results: Iterable[ModelResult], folder: str | Path) -> list[Path]:
    """Draw everything that the results support, a folder for each group.

    Figures whose records changed since they were drawn are replaced.

    Returns:
        The files, PNG and SVG.

    Raises:
        StoreError: a file cannot be written.
    """
    gallery = _Gallery(Path(folder))
    groups = by_group(results)
    figures = reports("figure")
    used: set[str] = set()
    for group, members in groups.items():
        # There may be other samples under the same name and number.
        slug = unused_file_name(group_slug(group), used, group.fingerprint[:8])
        drawn: set[str] = set()
        ordered = best_first(members)
        goal = ordered[0].threat_model.goal
        shown = {name: report for name, report in figures.items() if report.goal == goal}
        for name, report in shown.items():
            if report.of == "group":
                gallery.keep(f"{slug}/{name}", report, ordered)
        for result in ordered:
            attack = result.attention_attack or next(iter(result.attacks))
            mark = result.model.fingerprint[:8]
            model = unused_file_name(result.model.name, drawn, mark)
            for name, report in shown.items():
                if report.of == "model":
                    by = [attack] if report.by_attack else []
                    gallery.keep(f"{slug}/{name}_{model}", report, [result], *by)
    for (dataset, norm), members in _by_norm(groups).items():
        attacks = [None, *sorted({name for result in members for name in result.attacks})]
        for name, report in figures.items():
            if report.of == "radii":
                stem = f"{name}_{file_name(dataset)}_{norm}"
                for under in attacks if report.by_attack else ():
                    ending = "" if under is None else f"_{file_name(under)}"
                    gallery.keep(f"{stem}{ending}", report, members, under)
                if not report.by_attack:
                    gallery.keep(stem, report, members)
    gallery.close()
    return gallery.files


class _Gallery:
    """A folder of figures that knows what each was drawn from, and draws none twice.

    Drawing takes a second a figure; a leaderboard that is rebuilt from stored records should not
    wait for figures that would come out the same. Figures that are no longer asked for go.
    """

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self._folder = folder
        self._manifest = folder / "manifest.json"
        self._code = source_hash(
            "robench.reporting", "robench.statistics", "robench.metric_catalogue"
        )
        self._made_with = installed_versions("matplotlib")
        try:
            self._drawn: dict[str, str] = dict(json.loads(read_text(self._manifest)))
        except (OSError, ValueError, TypeError, RecursionError):
            # Not there, or not ours: everything is drawn anew.
            self._drawn = {}
        self._kept: dict[str, str] = {}

    def keep(
        self,
        stem: str,
        report: Report,
        shown: Sequence[ModelResult],
        *attack: str | None,
    ) -> None:
        """Have a report of ``shown`` as ``stem``, drawn anew if the shown records changed."""
        digest = canonical_hash(
            {
                **self._made_with,
                "code": [self._code, _code_of(report)],
                "records": [
                    [
                        stored.record.model_dump(mode="json"),
                        getattr(stored.trace_path, "name", None),
                    ]
                    for result in shown
                    for stored in (*result.attacks.values(), *result.transfers)
                ],
            }
        )
        files = self._files(stem)
        if self._drawn.get(stem) != digest or not all(file.is_file() for file in files):
            # Loads matplotlib, which takes as long as all of the tables.
            from robench.reporting.plots.style import save

            figure = report(shown, *attack)
            if figure is None:
                return
            save(figure, self._folder / stem)
        self.files += files
        self._kept[stem] = digest

    def close(self) -> None:
        """Write what was drawn from what, and delete what was drawn before and is not now."""
        for stem in self._drawn.keys() - self._kept.keys():
            for file in self._files(stem):
                # A manifest from a stranger's folder names nothing outside it.
                if file.resolve().is_relative_to(self._folder.resolve()):
                    file.unlink(missing_ok=True)
        content = json.dumps(self._kept, indent=1, sort_keys=True) + "\n"
        atomic_write(self._manifest, content.encode())

    def _files(self, stem: str) -> list[Path]:
        return [self._folder / f"{stem}{suffix}" for suffix in (".png", ".svg")]


def _code_of(report: Report) -> str | None:
    """What decides a figure beside robench's own code; a function of robench's own is not imported."""
    own = isinstance(report.make, str) and report.make.startswith("robench.")
    return None if own else identity_of(report.function)


def _by_norm(
    groups: dict[GroupKey, list[ModelResult]],
) -> dict[tuple[str, str], list[ModelResult]]:
    # Only radii of the same samples and seed make a curve: those of the largest such set.
    families: dict[tuple[str, str], dict[tuple[str, int], list[ModelResult]]] = {}
    for group, members in groups.items():
        if members[0].threat_model.goal != "untargeted":
            continue
        family = families.setdefault((group.dataset, group.norm), {})
        family.setdefault((group.fingerprint, group.seed), []).extend(members)
    return {key: max(family.values(), key=len) for key, family in families.items()}
