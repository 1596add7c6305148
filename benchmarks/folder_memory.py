"""Peak memory over folders of 1,000, 10,000 and 50,000 images.

Makes the folders of small JPEG files in a temporary place, and for each a process of its own that

- ``stream``: opens it, takes its fingerprint, and passes every batch through a small network;
- ``evaluate``: runs ``robench.evaluate`` with FGSM on all of it, records included.

Reported is the largest resident memory of each process. All images together, decoded, would take
``n`` times 108 KiB; so would their adversarial inputs, which lie in a file from 256 MiB on. Run by
hand::

    python benchmarks/folder_memory.py --write

Fails where the largest folder takes over ``--target`` MiB more than the smallest, or an evaluation
of it over ten times that: its table of samples has a row for each.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SIDE = 96
CLASSES = 10
BATCH = 256
RESULT = Path(__file__).parent / "results" / "folder_memory.md"
MODES = ("stream", "evaluate")


def make_folder(root: Path, n: int) -> None:
    """Coarse noise as JPEG; the brightness says the class."""
    for label in range(CLASSES):
        (root / f"{label}").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for row in range(n):
        label = row % CLASSES
        coarse = draw.integers(-9, 10, (8, 8, 3)) + 14 + 25 * label
        image = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(
            root / f"{label}" / f"{row:06d}.jpg", quality=80
        )


def network() -> nn.Module:
    """Classifies by mean brightness: the nearest of ten levels, so that all is classified right."""
    built = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    convolution, linear = built[0], built[3]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    levels = (14 + 25 * torch.arange(CLASSES)) / 255
    with torch.no_grad():
        convolution.weight.fill_(1 / 27)
        linear.weight.copy_((2 * levels / 8)[:, None].expand(-1, 8) * 100)
        linear.bias.copy_(-100 * levels**2)
    return built.eval()


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell")


@torch.no_grad()
def stream(folder: Path) -> float:
    from robench.datasets import load_dataset

    data = load_dataset(folder)
    built = network()
    assert data.fingerprint
    correct = 0
    for rows in torch.split(torch.arange(len(data)), BATCH):
        correct += int((built(data.batch(rows)).argmax(1) == data.labels[rows]).sum())
    return 100 * correct / len(data)


def evaluate(folder: Path) -> float:
    import robench
    from robench.attacks.suites import load_suite
    from robench.records import Outcome

    quick = load_suite("quick")
    suite = quick.model_copy(update={"attacks": quick.attacks[:1]})
    (stored,) = robench.evaluate(
        network(), str(folder), suite, threat_model="Linf-1/255", device="cpu", precision="fp32"
    )
    record = stored.record
    return 100 - 100 * record.count(Outcome.CLEAN_ERROR) / record.n


@dataclass(frozen=True)
class Row:
    n: int
    mode: str
    peak: float
    seconds: float
    clean_acc: float


def measure(folder: Path, n: int, mode: str) -> Row:
    command = [sys.executable, __file__, "--worker", mode, str(folder)]
    begun = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return Row(n, mode, found["peak"], time.perf_counter() - begun, found["clean_acc"])


def table(rows: list[Row]) -> str:
    smallest = {row.mode: row.peak for row in reversed(rows)}
    lines = [
        "| images | decoded, MiB | mode | peak resident, MiB | above the smallest, MiB |",
        "|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        decoded = row.n * 3 * SIDE * SIDE * 4 / 2**20
        more = row.peak - smallest[row.mode]
        lines.append(f"| {row.n:,} | {decoded:,.0f} | {row.mode} | {row.peak:,.0f} | {more:,.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--target", type=float, default=100.0, help="MiB")
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        mode, folder = options.worker
        clean_acc = {"stream": stream, "evaluate": evaluate}[mode](Path(folder))
        print(json.dumps({"peak": peak_mib(), "clean_acc": clean_acc}))
        return 0
    rows = []
    for n in sorted(options.sizes):
        with tempfile.TemporaryDirectory(prefix="robench-folder-") as place:
            folder = Path(place) / "images"
            make_folder(folder, n)
            for mode in options.modes:
                rows.append(measure(folder, n, mode))
                print(rows[-1], file=sys.stderr)
    text = table(rows)
    print(text)
    if options.write:
        RESULT.write_text(
            "# Memory over folders of images\n\n"
            f"Generated JPEG files of {SIDE}x{SIDE}, a small convolutional network that classifies "
            "all of them, a process for each row. `stream`: fingerprint and a forward pass of "
            "everything; `evaluate`: FGSM on everything, with records and metrics.\n\n"
            f"Command: `OMP_NUM_THREADS={torch.get_num_threads()} python "
            f"benchmarks/folder_memory.py --write`\n\n{text}\n\n{options.machine}, {torch.get_num_threads()} thread(s); "
            f"Python {platform.python_version()}, torch {torch.__version__}.\n"
        )
    for mode, target in (("stream", options.target), ("evaluate", 10 * options.target)):
        peaks = [row.peak for row in rows if row.mode == mode]
        if peaks and max(peaks) - min(peaks) > target:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
