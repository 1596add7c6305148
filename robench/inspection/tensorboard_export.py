"""Traces as TensorBoard scalars: a run for each stage, medians and quartiles by step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from robench.errors import MissingDependencyError, StoreError
from robench.files import ensure_writable
from robench.reporting.traces import stage_traces
from robench.results import StoredRecord
from robench.results.traces import read_trace
from robench.text import file_name


def export_tensorboard(records: Iterable[StoredRecord], folder: Path) -> list[Path]:
    """Write the trace of every record that kept one: ``tensorboard --logdir FOLDER`` shows them.

    A run is named after model, attack, key and stage; its scalars are ``best_margin``, ``best_loss`` and
    ``gradient_norm``, each as ``median``, ``low`` and ``high`` over the searches, the latter two
    the quartiles.

    Returns:
        The runs' folders.

    Raises:
        MissingDependencyError: the package tensorboard is not installed.
        StoreError: no record has a trace, one is damaged, or the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # optional
    except ImportError as error:
        raise MissingDependencyError(
            "traces for TensorBoard need the package 'tensorboard', which is not installed",
            hint="pip install 'robench[tensorboard]'",
        ) from error
    ensure_writable(folder, "--out")
    written = []
    for stored in records:
        if stored.trace_path is None:
            continue
        record = stored.record
        about = (record.model.id, record.attack.name, record.key[:8])
        for trace in stage_traces(partial(read_trace, stored.trace_path)):
            run = folder / file_name("-".join((*about, trace.stage)))
            with SummaryWriter(str(run)) as writer:
                for name, spread in trace.spreads.items():
                    for part in ("median", "low", "high"):
                        for step, value in zip(trace.steps, getattr(spread, part), strict=True):
                            if not math.isnan(value):
                                writer.add_scalar(f"{name}/{part}", value, int(step))
            written.append(run)
    if not written:
        raise StoreError("no record has a trace", hint="Run it again with --trace")
    return written
