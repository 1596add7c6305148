"""Clean samples of the data sets that records are of, kept for the page to show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from robench.datasets import Dataset
from robench.errors import RobenchError
from robench.inspection.verification import check_samples, registered_name
from robench.records import DatasetSpec
from robench.request import Request
from robench.request_loading import load_samples
from robench.results import Store
from robench.results.clean_samples import CleanSamples, keep_clean_samples, thinned

_BATCH = 64


def samples_of(spec: DatasetSpec, request: Request) -> Dataset:
    """The samples that records of ``spec`` are of, by the name that the request gives, else by theirs.

    Raises:
        DataError, UnknownNameError: they cannot be read.
        StoreError: they are other samples.
    """
    data = registered_name(spec.name) if request.dataset is None else request.dataset
    asked = replace(request, dataset=data, split=spec.split, n=spec.n)
    samples = load_samples(asked, spec.preprocessing)
    check_samples(samples, spec)
    return samples


def keep_shown_samples(store: Store, specs: Iterable[DatasetSpec], request: Request) -> list[str]:
    """Keep the samples of each data set where the page looks for them.

    Returns:
        A sentence for each data set that cannot be read here.

    Raises:
        StoreError: a file cannot be written.
    """
    gaps = []
    for spec in {spec.fingerprint: spec for spec in specs}.values():
        try:
            samples = samples_of(spec, request)
            batches = np.array_split(np.arange(len(samples)), -(-len(samples) // _BATCH))
            parts = [thinned(samples.batch(rows.tolist()).numpy()) for rows in batches]
        except RobenchError as error:
            gaps.append(f"no clean samples of {spec.name} in the page: {error}")
            continue
        images, stride = np.concatenate([images for images, _ in parts]), parts[0][1]
        kept = CleanSamples(tuple(samples.sample_ids), images, stride)
        keep_clean_samples(store, spec.fingerprint, kept)
    return gaps
