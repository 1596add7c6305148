"""What keeping adversarial inputs costs in memory and on the disk.

A data set of random pictures of 3 x 224 x 224 that are made when they are read, a model of one
convolution, and FGSM: next to nothing but the inputs themselves. Each run is a process of its own,
whose peak of memory is the system's figure. Fails where keeping the inputs of the larger set
raises the peak by more than a tenth of what the inputs measure. Run by hand::

    python benchmarks/save_adversarial.py
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import robench
from robench.datasets import Dataset
from robench.models import wrap_module
from robench.records import AttackSpec, Suite

SHAPE = (3, 224, 224)
FGSM = AttackSpec(
    name="fgsm",
    attack="pgd",
    params={"steps": 1, "relative_step_size": 1.0, "random_start": False},
)


class Pictures(Dataset):
    """Random pictures of 8 bits a channel; all of class 0."""

    def __init__(self, count: int) -> None:
        super().__init__(
            name="pictures",
            split="test",
            sample_ids=[f"{index:06d}" for index in range(count)],
            labels=torch.zeros(count, dtype=torch.int64),
            class_names=("a", "b"),
            input_shape=SHAPE,
        )

    def _read(self, indices: list[int]) -> Tensor:
        drawn = []
        for index in indices:
            generator = torch.Generator().manual_seed(index)
            coarse = torch.rand(1, 3, 14, 14, generator=generator)
            smooth = nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear")
            drawn.append((smooth[0] * 255).round() / 255)
        return torch.stack(drawn)


class Trivial(nn.Module):
    """Says class 0 of everything, by a lead that depends on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 1, 16, stride=16)

    def forward(self, inputs: Tensor) -> Tensor:
        lead = 5 + self.look(inputs).mean(dim=(1, 2, 3))
        return torch.stack((lead, -lead), dim=1)


@dataclass(frozen=True)
class Measured:
    n: int
    saved: bool
    peak_mib: float
    disk_mib: float


def run_here(count: int, save: bool, results: Path) -> None:
    """One evaluation in this process; prints peak MiB and MiB on the disk."""
    torch.manual_seed(0)
    module = wrap_module(Trivial(), num_classes=2, threat_model="Linf-4/255")
    robench.evaluate(
        module,
        Pictures(count),
        Suite(name="fgsm", attacks=(FGSM,)),
        n=None,
        device="cpu",
        precision="fp32",
        workers=1,
        batch_size=64,
        results=results,
        save_adversarial=save,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    disk = sum(path.stat().st_size for path in results.rglob("*.npz")) / 2**20
    print(peak, disk)


def measure(count: int, save: bool) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--here", folder, "--n", str(count)]
        done = subprocess.run(
            [*command, *(["--save"] if save else [])], check=True, capture_output=True, text=True
        )
    peak, disk = map(float, done.stdout.split()[-2:])
    return Measured(count, save, peak, disk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/save_adversarial.md"))
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        run_here(options.n, options.save, options.here)
        return
    rows = [measure(n, save) for n in (options.n // 10, options.n) for save in (False, True)]
    inputs_mib = 4 * options.n * 3 * 224 * 224 / 2**20
    lines = [
        "# Memory of keeping adversarial inputs",
        "",
        f"FGSM on random pictures of 3 x 224 x 224 with a trivial model, each run a process of its "
        f"own. The inputs of n = {options.n} measure {inputs_mib:.0f} MiB.",
        "",
        "| n | `--save-adversarial` | peak memory, MiB | npz, MiB |",
        "|---:|---|---:|---:|",
        *(
            f"| {row.n} | {'yes' if row.saved else 'no'} | {row.peak_mib:.0f} | {row.disk_mib:.0f} |"
            for row in rows
        ),
        "",
        f"`python benchmarks/save_adversarial.py --n {options.n}`, {time.strftime('%Y-%m-%d')}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, one worker.",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    growth = rows[3].peak_mib - rows[2].peak_mib
    if growth > inputs_mib / 10:
        raise SystemExit(f"keeping the inputs raises the peak by {growth:.0f} MiB")


if __name__ == "__main__":
    main()
