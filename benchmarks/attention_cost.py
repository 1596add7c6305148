"""What the attention and feature metrics cost beside AutoAttack.

For every model of a results folder that has an AutoAttack record, the metrics of one attack are
measured as `robench run` measures them (clean maps and features, adversarial ones, all metrics)
on the record's own samples, and set against the seconds in that record. Run by hand, after
``robench run`` on the same machine::

    python benchmarks/attention_cost.py --results results

A model that falls at once leaves robench's own AutoAttack nothing to do, and any metric costs much
beside nothing: where the share exceeds ``--target`` percent, ``pyautoattack`` is run on the same
samples, and the share of its time counts. Fails where that is too large as well. Which inputs are
measured does not change the cost: those of PGD-20 are taken where they were kept, else random signs at eps.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pyautoattack import AutoAttack

from robench.datasets import Dataset, load_dataset
from robench.devices import resolve_device
from robench.errors import RobenchError
from robench.evaluation.environment import describe_environment
from robench.evaluation.sample_metrics import SampleMetrics
from robench.models import load_model
from robench.models.wrapper import RobenchModel
from robench.results import Store, StoredRecord

ATTACK = "autoattack"
BATCH = 256
"""As in an evaluation."""


@dataclass(frozen=True)
class Row:
    model: str
    under: str
    maps: str
    measured: int
    seconds: float
    attack_seconds: float
    same_machine: bool
    reference_seconds: float | None = None
    """What ``pyautoattack`` takes, where that was measured"""

    @property
    def percent(self) -> float:
        return 100 * self.seconds / self.attack_seconds

    @property
    def percent_of_reference(self) -> float | None:
        return 100 * self.seconds / self.reference_seconds if self.reference_seconds else None


def attacked(store: Store) -> list[StoredRecord]:
    found = [stored for stored in store.records() if stored.record.attack.name == ATTACK]
    return sorted(found, key=lambda stored: (stored.record.model.id, stored.record.created))


def samples_of(stored: StoredRecord) -> Dataset:
    spec = stored.record.dataset
    dataset = load_dataset(spec.name, split=spec.split, n=spec.n)
    if dataset.fingerprint != spec.fingerprint:
        raise SystemExit(f"{spec.name} is not the data of the records: the fingerprints differ")
    return dataset


def perturbed(
    stored: StoredRecord, store: Store, dataset: Dataset, rows: torch.Tensor
) -> torch.Tensor:
    """(m, C, H, W): inputs as an attack leaves them."""
    for other in store.records():
        same = other.record.model.fingerprint == stored.record.model.fingerprint
        alike = other.record.dataset.fingerprint == stored.record.dataset.fingerprint
        wanted = same and alike and other.record.attack.name == "pgd-20"
        if wanted and store.has_adversarial(other.record.key):
            return torch.from_numpy(store.adversarial_rows(other.record.key)[rows.numpy()])
    inputs = dataset.batch(rows)
    signs = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).sign()
    return (inputs + stored.record.threat_model.radius * signs).clamp(0, 1)


def reference_seconds(model: RobenchModel, dataset: Dataset, stored: StoredRecord) -> float:
    """The standard version of ``pyautoattack`` on the record's samples, as users run it."""
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    threat = stored.record.threat_model
    device = next(model.parameters()).device
    reference = AutoAttack(model, norm=threat.norm, eps=threat.radius, seed=0, device=device)
    everything = range(len(dataset))
    inputs, labels = dataset.batch(everything).to(device), dataset.labels.to(device)
    start = time.perf_counter()
    reference.run_standard_evaluation(inputs, labels, batch_size=250)
    return time.perf_counter() - start


def measure(
    stored: StoredRecord, store: Store, device: torch.device, repeats: int, target: float
) -> Row:
    record = stored.record
    dataset = samples_of(stored)
    model = load_model(record.model.id).to(device)
    if model.summary.fingerprint != record.model.fingerprint:
        raise SystemExit(
            f"{record.model.id} is not the model of the record: weights or card differ"
        )
    table = stored.table.set_index("sample_id").loc[list(dataset.sample_ids)]
    correct = (table["clean_prediction"] == table["label"]).fillna(False).to_numpy(dtype=bool)
    rows = torch.from_numpy(correct).nonzero().squeeze(1)
    adv_inputs = perturbed(stored, store, dataset, rows)
    seconds = []
    for _ in range(repeats + 1):
        metrics = SampleMetrics(model, dataset, rows, device, BATCH)
        start = time.perf_counter()
        metrics.values(adv_inputs)
        seconds.append(time.perf_counter() - start)
    here = describe_environment((device,), "", BATCH)
    there = record.environment
    row = Row(
        record.model.name,
        str(record.threat_model),
        metrics.description or "none",
        len(rows),
        # The first pass warms up; its time is left out, as it is a small part of an evaluation.
        statistics.median(seconds[1:]),
        record.cost.seconds,
        (here.device_name, here.threads) == (there.device_name, there.threads),
    )
    if row.percent <= target:
        return row
    return replace(row, reference_seconds=reference_seconds(model, dataset, stored))


def table_of(rows: Iterable[Row]) -> list[str]:
    lines = [
        "| model | under | maps | samples measured | metrics, s | AutoAttack, s | share | "
        "pyautoattack, s | share |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        mark = "" if row.same_machine else " \\*"
        reference = " | "
        if row.reference_seconds and row.percent_of_reference:
            reference = f"{row.reference_seconds:.1f} | {row.percent_of_reference:.2f} %"
        lines.append(
            f"| {row.model} | {row.under} | {row.maps} | {row.measured} | {row.seconds:.3f} | "
            f"{row.attack_seconds:.1f}{mark} | {row.percent:.2f} % | {reference} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--target", type=float, default=5.0, help="in percent")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention_cost.md"))
    options = parser.parse_args()
    device = resolve_device(options.device)
    store = Store(options.results)
    try:
        found = attacked(store) if options.results.is_dir() else []
        if not found:
            raise SystemExit(
                f"{options.results} has no {ATTACK} records, which the metrics are set against: "
                "run `robench run --suite aa-standard` first"
            )
        threads = found[0].record.environment.threads
        if threads is not None:
            torch.set_num_threads(threads)
        rows = [measure(stored, store, device, options.repeats, options.target) for stored in found]
    except RobenchError as error:
        raise SystemExit(str(error)) from error
    first = found[0].record
    here = describe_environment((device,), "", BATCH)
    text = "\n".join(
        [
            "# Cost of the attention and feature metrics",
            "",
            f"All metrics of one attack, clean and adversarial maps and features, for the correctly "
            f"classified of {first.dataset.name}'s n = {first.n} samples, beside the seconds of that "
            f"model's AutoAttack record. Median of {options.repeats}.",
            "",
            *table_of(rows),
            "",
            f"{here.device_name}, {here.threads} threads; Python {platform.python_version()}, "
            f"torch {torch.__version__}.",
            *(
                ["", "\\* recorded on another device or with another number of threads."]
                if not all(row.same_machine for row in rows)
                else []
            ),
            "",
        ]
    )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    if any((row.percent_of_reference or row.percent) > options.target for row in rows):
        raise SystemExit(f"more than {options.target:g} % for at least one model")


if __name__ == "__main__":
    main()
