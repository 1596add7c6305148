"""Records of many models at several radii with chosen names, for pages; nothing is attacked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from record_factory import make_record, make_samples

from robench.records import Flag
from robench.results import SamplePanel, Store, StoredRecord, samples_to_table
from robench.results.clean_samples import CleanSamples, keep_clean_samples

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


def page_inputs(n: int = 24, size: int = 6, *, channels: int = 1) -> npt.NDArray[np.float32]:
    """Clean inputs (n, C, size, size) of 8 bits, all different, away from 0 and 1."""
    rng = np.random.default_rng(1)
    return (rng.integers(64, 192, (n, channels, size, size)) / 255).astype(np.float32)


def keep_pictures(
    store: Store, records: Iterable[StoredRecord], inputs: npt.NDArray[np.float32]
) -> list[StoredRecord]:
    """The records, written with pictures: of ``pgd-20`` all adversarial inputs, of ``autoattack`` a
    panel of the first four samples, and the clean samples of their data. Perturbations are ±ε."""
    rng, kept = np.random.default_rng(2), []
    for stored in records:
        record = stored.record
        signs = rng.choice([-1, 1], inputs.shape).astype(np.float32)
        adversarial = inputs + np.float32(record.threat_model.radius) * signs
        arrays = {}
        if record.attack.name == "autoattack":
            maps = rng.random((2, 4, 3, 3))
            rows = stored.table.iloc[:4]
            panel = SamplePanel(
                tuple(rows["sample_id"]),
                np.moveaxis(inputs[:4], 1, -1),
                np.moveaxis(adversarial[:4], 1, -1),
                *maps,
                *(rows["label"].to_numpy(),) * 3,
            )
            arrays = panel.to_arrays()
        whole = adversarial if record.attack.name == "pgd-20" else None
        kept.append(store.write(record, stored.samples, adversarial=whole, arrays=arrays))
        samples = CleanSamples.of(stored.table["sample_id"].tolist(), inputs)
        keep_clean_samples(store, record.dataset.fingerprint, samples)
    return kept
