"""All figures that a set of records supports."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from robench.errors import CorruptRecordError, StoreError
from robench.files import atomic_write, read_text
from robench.records import canonical_hash
from robench.registry import identity_of, source_hash
from robench.reporting.catalogue import reports
from robench.reporting.export import group_slug
from robench.reporting.model_results import GroupKey, ModelResult, by_group
from robench.reporting.plots.confusion import confusion_under_attack
from robench.reporting.plots.robust_against import security_curves
from robench.reporting.plots.samples import sample_panel
from robench.reporting.plots.style import save
from robench.reporting.plots.traces import search_traces
from robench.request import GOALS
from robench.results import SamplePanel, Store
from robench.text import file_name, unused_file_name

log = logging.getLogger("robench.reporting")


def render_plots(
    results: Iterable[ModelResult], folder: str | Path, *, store: Store | None = None
) -> list[Path]:
    """Draw everything that the results support, a folder for each group.

    Figures whose records changed since they were drawn are replaced. Sample panels are read from
    ``store``; None: no panels.

    Returns:
        The files, PNG and SVG.

    Raises:
        StoreError: a file cannot be written. A damaged sample panel is logged and left out.
    """
    gallery = _Gallery(Path(folder))
    groups = by_group(results)
    figures = reports("figure")
    used: set[str] = set()
    for group, members in groups.items():
        # There may be other samples under the same name and number.
        slug = unused_file_name(group_slug(group), used, group.fingerprint[:8])
        drawn: set[str] = set()
        best_first = sorted(members, key=lambda r: (-r.robust_acc.estimate, r.model.id))
        targeted = best_first[0].threat_model.targets is not None
        for name, report in figures.items():
            if report.goal != GOALS[targeted]:
                continue
            code = identity_of(report.function)
            gallery.keep(f"{slug}/{name}", report, best_first, code=code)
        for result in best_first if not targeted else ():
            attack = result.attention_attack or next(iter(result.attacks))
            mark = result.model.fingerprint[:8]
            model = unused_file_name(result.model.name, drawn, mark)
            gallery.keep(f"{slug}/confusion_{model}", confusion_under_attack, result, attack)
            gallery.keep(f"{slug}/traces_{model}", search_traces, result)
            if store is not None:
                gallery.keep(f"{slug}/samples_{model}", _panel, result, attack, store)
    for (dataset, norm), members in _by_norm(groups).items():
        for attack in sorted({name for result in members for name in result.attacks}):
            stem = f"security_curves_{file_name(dataset)}_{norm}_{file_name(attack)}"
            gallery.keep(stem, security_curves, members, attack)
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
        try:
            self._drawn: dict[str, str] = dict(json.loads(read_text(self._manifest)))
        except (OSError, ValueError, TypeError, RecursionError):
            # Not there, or not ours: everything is drawn anew.
            self._drawn = {}
        self._kept: dict[str, str] = {}

    def keep(
        self,
        stem: str,
        draw: Callable[..., Figure | None],
        shown: ModelResult | Sequence[ModelResult],
        *arguments: Any,
        code: str | None = None,
    ) -> None:
        """Have ``draw(shown, *arguments)`` as ``stem``, drawn anew if the shown records changed."""
        digest = canonical_hash(
            {
                "matplotlib": matplotlib.__version__,
                "code": [self._code, code],
                "records": [
                    [
                        stored.record.model_dump(mode="json"),
                        getattr(stored.trace_path, "name", None),
                    ]
                    for result in ([shown] if isinstance(shown, ModelResult) else shown)
                    for stored in result.attacks.values()
                ],
            }
        )
        files = self._files(stem)
        if self._drawn.get(stem) != digest or not all(file.is_file() for file in files):
            figure = draw(shown, *arguments)
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


def _panel(result: ModelResult, attack: str, store: Store) -> Figure | None:
    stored = result.attacks[attack]
    if stored.arrays_path is None:
        return None
    try:
        panel = SamplePanel.from_arrays(store.read_arrays(stored.record.key))
        if panel is not None:
            rows = stored.table.set_index("sample_id").reindex(panel.sample_ids)
            labels = rows["label"].to_numpy(dtype="float64", na_value=float("nan"))
            if not (labels == panel.labels).all():
                raise CorruptRecordError("the panel's samples are not the table's")
    except StoreError as error:
        # The record itself is sound: a lost picture is no reason to draw nothing.
        log.warning("no sample panel: %s", error)
        return None
    return None if panel is None else sample_panel(panel, stored.record)


def _by_norm(
    groups: dict[GroupKey, list[ModelResult]],
) -> dict[tuple[str, str], list[ModelResult]]:
    # Only radii of the same samples and seed make a curve: those of the largest such set.
    families: dict[tuple[str, str], dict[tuple[str, int], list[ModelResult]]] = {}
    for group, members in groups.items():
        if members[0].threat_model.targets is not None:
            continue
        family = families.setdefault((group.dataset, group.norm), {})
        family.setdefault((group.fingerprint, group.seed), []).extend(members)
    return {key: max(family.values(), key=len) for key, family in families.items()}
