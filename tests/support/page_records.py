"""Records of many models at several radii with chosen names, for pages; nothing is attacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from record_factory import make_record, make_samples

from robench.records import Flag
from robench.results import StoredRecord, samples_to_table

ATTACKS = ("autoattack", "fgsm", "pgd-20")
FLAG = Flag(
    name="zero_gradients", severity="severe", evidence="12 of 100 <b>are</b> zero", count=12
)


def page_records(
    models: Sequence[str],
    radii: Sequence[str] = ("0.1", "0.2"),
    *,
    n: int = 24,
    dataset: str = "digits",
    classes: Sequence[str] = ("cat", "dog", "frog"),
) -> Iterator[StoredRecord]:
    """Of each model, radius and attack. A larger radius and a later model break more samples; the
    first model has a flag."""
    rng = np.random.default_rng(0)
    for place, model in enumerate(models):
        wrong = rng.random(n) < 0.05
        for rank, radius in enumerate(radii):
            for attack in ATTACKS:
                share = 0.1 + 0.2 * rank + 0.5 * place / len(models) + 0.1 * (attack != "fgsm")
                broken = rng.random(n) < share
                letters = "".join(np.where(wrong, "C", np.where(broken, "B", "S")))
                values = {"attention_deviation": rng.random(n).tolist()}
                samples = make_samples(letters, classes=len(classes), values=values)
                record = make_record(
                    samples,
                    model=model,
                    attack=attack,
                    dataset=dataset,
                    threat=f"Linf-{radius}",
                    classes=len(classes),
                    defense=("standard", "trades", "pgd-at")[place % 3],
                    flags=[FLAG] if place == 0 else [],
                )
                named = record.dataset.model_copy(update={"class_names": tuple(classes)})
                yield StoredRecord(
                    record.model_copy(update={"dataset": named}), samples_to_table(samples)
                )
