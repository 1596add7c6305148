"""How much a zoo model's accuracy owes to its seed.

Trains each model again with other seeds, exactly as its card says, measures all of them on the
test split (clean, PGD-20, and AutoAttack's first two attacks from ``pyautoattack``), and writes
mean and spread into the card. ``python benchmarks/zoo_spread.py --help``.

``apgd-ce`` and ``apgd-t`` decide all but a few tenths of a point of AutoAttack on adversarially
trained models, at a fifth of its cost; the leaderboard has the full suite for the committed seed.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import tempfile
import time
from pathlib import Path

import torch
from pyautoattack import AutoAttack

from robench.datasets import load_dataset
from robench.defenses import resolve, train, validate
from robench.defenses.training_state import STATE_FILE
from robench.models import find_card, load_model, write_card
from robench.records import ModelCard

_ATTACKS = ["apgd-ce", "apgd-t"]


def retrain(card: ModelCard, seed: int, folder: Path) -> Path:
    """The card's recorded settings with another seed; goes on where it was interrupted."""
    out_folder = folder / card.name / str(seed)
    finished = out_folder / "card.toml"
    if finished.exists() and not (out_folder / STATE_FILE).exists():
        return finished
    origin = card.provenance
    if origin.command is None:
        raise SystemExit(f"{card.id} records no command")
    words = shlex.split(origin.command)
    teacher = words[words.index("--teacher") + 1] if "--teacher" in words else None
    skipped = ("devices", "device", "teacher", "teacher_sha256")
    settings = {k: v for k, v in origin.recipe.items() if k not in skipped}
    job = resolve(
        card.defense,
        card.dataset,
        architecture=card.architecture,
        threat_model=card.threat_model,
        teacher=teacher,
        name=card.name,
        seed=seed,
        folder=out_folder,
        device="cpu",
        settings=settings,
    )
    return train(job, progress=False)


def measure(path: Path) -> dict[str, float]:
    """Clean, PGD-20 and AutoAttack's first two attacks on the test split, in percent."""
    model = load_model(path)
    card = find_card(path).card
    data = load_dataset(card.dataset)
    device = torch.device("cpu")
    figures = validate(model, data, card.threat_model, seed=0, steps=20, device=device)
    inputs, labels = data.batch(range(len(data))), data.labels
    attack = AutoAttack(
        model,
        norm=card.threat_model.norm,
        eps=card.threat_model.radius,
        version="custom",
        seed=0,
        device="cpu",
    )
    attack.attacks_to_run = list(_ATTACKS)
    adv_inputs = attack.run_standard_evaluation(inputs, labels, batch_size=len(data))[0]
    with torch.no_grad():
        right = (model(adv_inputs).argmax(1) == labels) & (model(inputs).argmax(1) == labels)
    return {
        "clean_acc": figures["clean_acc"],
        "pgd_20_acc": figures["robust_acc"],
        "apgd_acc": 100 * right.float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="ids of zoo models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="besides the card's")
    parser.add_argument("--baseline", help="its gain is recorded", required=True)
    parser.add_argument(
        "--keep", type=Path, help="keep the retrained models here, and go on from them"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            located = find_card(name)
            card = located.card
            folder = options.keep or Path(temporary)
            started = time.perf_counter()
            paths = [retrain(card, seed, folder) for seed in options.seeds]
            minutes = (time.perf_counter() - started) / 60 / len(paths)
            rows = [measure(path) for path in (located.path, *paths)]
            measured: dict[str, float | int | str] = {
                "data": f"{card.dataset} test",
                "n": len(load_dataset(card.dataset)),
                "seeds": ", ".join(map(str, (card.provenance.seed, *options.seeds))),
                "command": f"python benchmarks/zoo_spread.py {name} --baseline {options.baseline}",
                "apgd": "pyautoattack, " + " then ".join(_ATTACKS),
            }
            print(name, f"trained in {minutes:.1f} minutes a seed", flush=True)
            for key in rows[0]:
                values = [row[key] for row in rows]
                measured[key] = round(values[0], 2)
                measured[f"{key}_mean"] = round(statistics.fmean(values), 2)
                measured[f"{key}_sd"] = round(statistics.stdev(values), 2)
            reference = find_card(options.baseline)
            baseline = reference.card.provenance.measured.get("apgd_acc_mean")
            if isinstance(baseline, float) and reference.id != card.id:
                gain = float(measured["apgd_acc_mean"]) - baseline
                measured["gain_over_baseline"] = round(gain, 2)
                measured["baseline"] = f"{reference.id}, apgd_acc_mean"
            # What zoo_figures.py wrote stays; run it again to set its command beside this one.
            measured = {**card.provenance.measured, **measured}
            origin = card.provenance.model_copy(update={"measured": measured})
            write_card(card.model_copy(update={"provenance": origin}), located.path)
            print(name, {k: v for k, v in measured.items() if not isinstance(v, str)}, flush=True)


if __name__ == "__main__":
    main()
