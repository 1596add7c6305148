"""Freed memory stays with the process: fewer page faults, no other result."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from robench.allocator import keep_freed_memory

_FAULTS = """
import ctypes, resource, sys
import torch
from robench.allocator import keep_freed_memory

# glibc at its worst, whatever this process has freed so far: a mapping for each large block.
mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
mallopt and mallopt(-3, 65536)
done = sys.argv[1] == "keep" and keep_freed_memory()

def work():
    for _ in range(20):
        layers = [torch.rand(500_000)]
        for _ in range(8):
            layers.append(layers[-1].relu())

for _ in range(4):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(what: str, **environment: str) -> tuple[str, int]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, what],
        env=ours | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc's")
def test_blocks_are_used_again_without_page_faults() -> None:
    kept, faults = _faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert faults < 500
    assert _faults("as it is")[1] > 10_000


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_users_own_settings_are_left_alone(name: str) -> None:
    value = "glibc.malloc.arena_max=2" if name == "GLIBC_TUNABLES" else "2"
    assert _faults("keep", **{name: value})[0] == "False"


def test_asking_twice_is_asking_once() -> None:
    assert keep_freed_memory() is keep_freed_memory()
