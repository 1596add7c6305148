"""Stratified splits that depend on sample ids alone."""

from __future__ import annotations

from robench.datasets.base import Dataset, Subset, sample_order
from robench.errors import UsageError

__all__ = ["hold_out", "stratified_choice"]


def stratified_choice(
    sample_ids: list[str], labels: list[int], n: int, *, salt: str = ""
) -> list[int]:
    """``n`` indices, ascending, with each class in proportion to its size.

    The largest-remainder method shares ``n`` among the classes; within a class the hash of the
    salted ids decides. No random generator takes part, so a library's new version changes
    nothing.

    Raises:
        UsageError: ``n`` is not between 0 and the number of samples.
    """
    total = len(sample_ids)
    if not 0 <= n <= total:
        raise UsageError(f"cannot choose {n} of {total} samples")
    if n == 0:
        return []
    members: dict[int, list[int]] = {}
    for index in sample_order(sample_ids, salt):
        members.setdefault(labels[index], []).append(index)
    # Integer arithmetic: remainders compare exactly.
    share = {label: n * len(rows) // total for label, rows in members.items()}
    by_remainder = sorted(members, key=lambda label: (-(n * len(members[label]) % total), label))
    for label in by_remainder[: n - sum(share.values())]:
        share[label] += 1
    return sorted(i for label, rows in members.items() for i in rows[: share[label]])


def hold_out(
    dataset: Dataset, n: int, *, split: str = "validation", salt: str = "validation/"
) -> tuple[Dataset, Dataset]:
    """Part ``dataset`` into (the rest, ``n`` held-out samples), stratified and fixed.

    Raises:
        UsageError: ``n`` leaves either part empty.
    """
    if not 1 <= n < len(dataset):
        raise UsageError(
            f"cannot hold out {n} of {len(dataset)} samples",
            where=f"{dataset.name} ({dataset.split})",
            hint=f"Choose from 1 to {len(dataset) - 1}",
        )
    held = stratified_choice(list(dataset.sample_ids), dataset.labels.tolist(), n, salt=salt)
    apart = set(held)
    rest = [i for i in range(len(dataset)) if i not in apart]
    return Subset(dataset, rest), Subset(dataset, held, split=split)
