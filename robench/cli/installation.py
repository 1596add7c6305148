"""What ``robench doctor`` says of the installation itself."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import robench
from robench.devices import resolve_device, total_memory
from robench.errors import CardError, RobenchError
from robench.files import cache_folder, config_folder, data_folder, ensure_writable
from robench.models.zoo import list_cards
from robench.models.zoo_folders import zoo_folders
from robench.registry import installed_versions

_NEEDED = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "scipy", "pydantic", "matplotlib")
_OPTIONAL = {
    "huggingface_hub": "hub",
    "datasets": "hf-datasets",
    "timm": "timm",
    "transformers": "transformers",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "lightning-fabric": "distributed",
}
_LITTLE = 2 * 2**30
"""Bytes of memory or disk below which evaluations are likely to fail"""


@dataclass(frozen=True)
class Part:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        state: ``lacking`` is to be mended, ``note`` is good to know.
        said: what was seen, and of what lacks how to mend it.
    """

    name: str
    state: Literal["ok", "note", "lacking"]
    said: str


def examine_installation() -> list[Part]:
    """Versions, devices, instructions, memory, disk, and the folders that robench writes."""
    return [*_versions(), *_devices(), *_room(), *_folders()]


def _versions() -> Iterator[Part]:
    yield Part("robench", "ok", f"{robench.__version__} in {Path(robench.__file__).parent}")
    yield Part("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    found = installed_versions(*_NEEDED, *_OPTIONAL)
    needed = [f"{name} {found[name]}" for name in _NEEDED if name in found]
    yield Part("packages", "ok", ", ".join(needed))
    for name in _NEEDED:
        if name not in found:
            yield Part("packages", "lacking", f"{name} is not installed: pip install {name}")
    for name, extra in _OPTIONAL.items():
        if name not in found:
            yield Part(
                "optional", "note", f"{name} is not installed: pip install 'robench[{extra}]'"
            )


def _devices() -> Iterator[Part]:
    instructions = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    yield Part("cpu", "ok", f"{platform.machine()}, {instructions}, {threads} threads of torch's")
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        size = total_memory(torch.device("cuda", number))
        yield Part(f"cuda:{number}", "ok", f"{name}, {_size(size)}")
    try:
        yield Part("device", "ok", f"--device auto is {resolve_device('auto')}")
    except (RobenchError, RuntimeError) as error:
        yield Part("device", "lacking", f"no device can be used: {error}")


def _room() -> Iterator[Part]:
    free = _free_memory()
    if free is None:
        yield Part("memory", "note", f"{_size(total_memory(torch.device('cpu')))}, free: unknown")
    else:
        said = f"{_size(free)} free of {_size(total_memory(torch.device('cpu')))}"
        little = "" if free >= _LITTLE else ": use --workers 1 and a small --batch-size"
        yield Part("memory", "note" if little else "ok", said + little)
    free = shutil.disk_usage(Path.cwd()).free
    little = "" if free >= _LITTLE else ": little for --save-adversarial"
    yield Part("disk", "note" if little else "ok", f"{_size(free)} free in {Path.cwd()}{little}")


def _folders() -> Iterator[Part]:
    places = {
        "results": (Path("results"), "--results"),
        "cache": (cache_folder(), "ROBENCH_CACHE"),
        "data": (data_folder(), "ROBENCH_DATA"),
        "configuration": (config_folder(), None),
    }
    for name, (folder, chosen_by) in places.items():
        try:
            ensure_writable(folder, chosen_by)
        except RobenchError as error:
            yield Part(name, "lacking", str(error))
        else:
            yield Part(name, "ok", f"{folder.absolute()} can be written")
    problems: list[CardError] = []
    cards = list_cards(problems=problems)
    for problem in problems:
        yield Part("zoo", "lacking", str(problem))
    folders = ", ".join(map(str, zoo_folders()))
    yield Part("zoo", "ok" if cards else "lacking", f"{len(cards)} models in {folders}")


def _free_memory() -> int | None:
    """Bytes that a process can still get; None: unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _size(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 2**30:.1f} GiB"
