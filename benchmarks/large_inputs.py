"""Does memory grow with the number of samples? Peak resident memory at n and at four times n.

Samples of 3 x 64 x 64 that are made when they are read, each from its index; a small convolutional
network that classifies them all; FGSM, which breaks a part of them. Every step is a process of its own:

- ``run``: one evaluation, metrics and record included;
- ``save``: the same with ``--save-adversarial``;
- ``shard``: a quarter of it with ``--save-adversarial``, the one that needs most memory of the four;
- ``merge``: the four joined, adversarial inputs included;
- ``verify``: every file's checksum, and every verdict on the kept inputs once more;
- ``attention``: all maps, metrics, findings and pictures of the kept inputs.

Fails where four times as many samples raise the peak of a step by more than ``--target`` of it. Run by
hand; what is done stays in ``--work``, so a run that was ended goes on::

    python benchmarks/large_inputs.py --write
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench import seeding
from robench.datasets import Dataset
from robench.evaluation.environment import describe_environment
from robench.evaluation.merging import merge_all
from robench.inspection.attention_report import reports_of, write_reports
from robench.inspection.attention_study import study_attention
from robench.inspection.verification import finds_in_8_bits, reverify
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel
from robench.preparation import prepare
from robench.records import AttackSpec, Suite
from robench.request import Request
from robench.results import Store

RESULT = Path(__file__).parent / "results" / "large_inputs.md"
SHAPE, COARSE, CLASSES, CELL = (3, 64, 64), 8, 10, 8
SHARDS = 4
FGSM = AttackSpec(
    name="fgsm", attack="pgd", params={"steps": 1, "relative_step_size": 1.0, "random_start": False}
)
CPU = torch.device("cpu")


class Pictures(Dataset):
    """Coarse noise of 8 bits a channel; the mean brightness says the class, and how surely."""

    reads_alike = True

    def __init__(self, count: int) -> None:
        super().__init__(
            name="pictures",
            split="test",
            sample_ids=[f"{index:06d}" for index in range(count)],
            labels=torch.arange(count) % CLASSES,
            class_names=[f"level {level}" for level in range(CLASSES)],
            input_shape=SHAPE,
        )

    def _read(self, indices: list[int]) -> Tensor:
        rows = torch.tensor(indices)
        keys = seeding.derive(rows, 1)
        noise = 17 * (seeding.uniform(keys, (SHAPE[0], COARSE, COARSE)) - 0.5)
        off = 22 * (seeding.uniform(seeding.derive(keys, 2), (1, 1, 1)) - 0.5)
        levels = 14 + 25 * self.labels[rows].view(-1, 1, 1, 1)
        pixels = (levels + noise + off).round().clamp(0, 255) / 255
        side = SHAPE[1] // COARSE
        return pixels.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)


def network() -> RobenchModel:
    """Takes the nearest of ten levels of brightness, as 16 features have it."""
    built = nn.Sequential(
        nn.Conv2d(3, 16, CELL, stride=CELL, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    convolution, linear = built[0], built[4]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    levels = (14 + 25 * torch.arange(CLASSES)) / 255
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        convolution.weight.copy_(torch.rand(convolution.weight.shape, generator=draw))
        convolution.weight /= convolution.weight.sum(dim=(1, 2, 3), keepdim=True)
        linear.weight.copy_((2 * levels / 16)[:, None].expand(-1, 16) * 100)
        linear.bias.copy_(-100 * levels**2)
    return wrap_module(built.eval(), num_classes=CLASSES, threat_model="Linf-4/255", name="levels")


# --- one step ------------------------------------------------------------------------------


def run(n: int, folder: Path, **asked: Any) -> None:
    """As ``robench run`` does it."""
    request = Request(
        models=[network()],
        dataset=Pictures(n),
        suite=Suite(name="fgsm", attacks=(FGSM,)),
        n=n,
        device="cpu",
        precision="fp32",
        workers=1,
        results=folder,
        **asked,
    )
    prepare(request).run()


def shard(n: int, folder: Path, index: int) -> None:
    """One of four parts."""
    run(n, folder / f"machine-{index}", shard=f"{index}/{SHARDS}", save_adversarial=True)


def merge(n: int, folder: Path) -> None:
    """As ``robench results merge``."""
    machines = [Store(folder / f"machine-{index}") for index in range(1, SHARDS + 1)]
    joined, problems = merge_all(machines, Store(folder / "merged"))
    if problems or joined[0].record.n != n:
        raise SystemExit(f"not merged: {problems}")


def verify(n: int, folder: Path) -> None:
    """As ``robench results verify``, of a model that is given in Python."""
    store = Store(folder / "saved")
    (key,) = store.keys()
    store.verify(key)
    about: Any = (store.read(key), store.adversarial_rows(key), network(), Pictures(n))
    judged, disagreements = reverify(*about, device=CPU)
    finds_in_8_bits(*about, device=CPU)
    if disagreements or judged < n // 2:
        raise SystemExit(f"{len(disagreements)} of {judged} verdicts differ")


def attention(n: int, folder: Path) -> None:
    """As ``robench attention``."""
    store = Store(folder / "saved")
    (key,) = store.keys()
    kept = store.adversarial_rows(key)
    study = study_attention(store.read(key), kept, network(), Pictures(n), device=CPU)
    reports = reports_of([study])
    write_reports(reports, folder / "attention")
    reports[0].text()


STEPS: dict[str, Callable[[int, Path], None]] = {
    "run": lambda n, folder: run(n, folder / "plain"),
    "save": lambda n, folder: run(n, folder / "saved", save_adversarial=True),
    **{f"shard {i}": partial(shard, index=i) for i in range(1, SHARDS + 1)},
    "merge": merge,
    "verify": verify,
    "attention": attention,
}


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell")


# --- all steps -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One step at one n."""

    step: str
    n: int
    peak: float
    """MiB"""
    seconds: float


def measure(n: int, work: Path) -> list[Row]:
    """Every step at one n, one after the other; of the shards the one that took most."""
    rows: dict[str, Row] = {}
    folder = work / str(n)
    for name in STEPS:
        said = folder / f"{name.replace(' ', '-')}.json"
        if not said.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "--worker", name, str(folder), "--sizes", str(n)]
            begun = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peak = json.loads(done.stdout.splitlines()[-1])
            said.write_text(json.dumps([peak, time.perf_counter() - begun]))
        row = Row(name.split()[0], n, *json.loads(said.read_text()))
        print(row, file=sys.stderr, flush=True)
        if row.step not in rows or rows[row.step].peak < row.peak:
            rows[row.step] = row
    return list(rows.values())


def growth(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """By step: how much more the largest n takes than the smallest, as a share, and in bytes a sample."""
    found = {}
    for name in dict.fromkeys(row.step for row in rows):
        mine = sorted((row for row in rows if row.step == name), key=lambda row: row.n)
        few, many = mine[0], mine[-1]
        more = many.peak - few.peak
        found[name] = more / few.peak, more * 2**20 / max(1, many.n - few.n)
    return found


def table(rows: list[Row]) -> str:
    """As Markdown."""
    sizes = sorted({row.n for row in rows})
    head = ["step", *(f"n = {n:,}, MiB" for n in sizes), "more", "bytes a sample", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, (share, each) in growth(rows).items():
        mine = sorted((row for row in rows if row.step == name), key=lambda row: row.n)
        cells = [name, *(f"{row.peak:,.0f}" for row in mine), f"{share:+.1%}", f"{each:,.0f}"]
        lines.append("| " + " | ".join([*cells, f"{mine[-1].seconds:.0f}"]) + " |")
    return "\n".join(lines)


def write(rows: list[Row], options: argparse.Namespace) -> None:
    """The results file."""
    here = describe_environment([CPU], "", 0)
    most = max(options.sizes)
    left_out = ("--work", str(options.work), "--write")
    given = " ".join(word for word in sys.argv[1:] if word not in left_out)
    RESULT.write_text(f"""# Memory at large n

`python benchmarks/large_inputs.py {given}`, {date.today()}

Peak resident memory of each step, a process of its own, on samples of 3 x 64 x 64; FGSM on a network with maps of
{SHAPE[1] // CELL} x {SHAPE[2] // CELL} cells and 16 features. {most:,} inputs as numbers measure {4 * most * 3 * 64 * 64 / 2**20:,.0f} MiB. What a shard
takes is that of the largest of {SHARDS}; seconds are those of the largest n.

{table(rows)}

{here.device_name}, {here.threads} thread(s); Python {platform.python_version()}, torch {torch.__version__}.
""")


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[12_500, 50_000])
    parser.add_argument("--target", type=float, default=0.1, help="of the smallest n's peak")
    parser.add_argument("--work", type=Path, default=Path("build/large_inputs"))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder = options.worker
        STEPS[name](options.sizes[0], Path(folder))
        print(json.dumps(peak_mib()))
        return 0
    rows = [row for n in options.sizes for row in measure(n, options.work)]
    print(table(rows))
    if options.write:
        write(rows, options)
    return int(any(share > options.target for share, _ in growth(rows).values()))


if __name__ == "__main__":
    sys.exit(main())
