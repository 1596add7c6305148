"""What a TorchScript program's file would hold, apart from what names places in a source."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

_MANGLED = re.compile(rb"___torch_mangle_\d+")
_NO_PART_OF_A_PROGRAM = re.compile(
    r"\.debug_pkl$|/version$|/byteorder$|/\.data/|/\.format_version$"
)


def program_parts(
    program: torch.jit.ScriptModule | torch.jit.ScriptFunction[Any, Any],
    mangled: dict[bytes, bytes],
) -> Iterator[bytes]:
    """Names and contents, in their order.

    torch's own numbers count up through the life of the process: ``mangled`` gives them others, by the
    order in which they appear.

    Raises:
        Exception: whatever TorchScript raises of what it cannot save.
    """
    if isinstance(program, torch.jit.ScriptFunction):
        content = program.save_to_buffer({})
    else:
        buffer = io.BytesIO()
        torch.jit.save(program, buffer)
        content = buffer.getvalue()

    def counted(found: re.Match[bytes]) -> bytes:
        return mangled.setdefault(found[0], b"mangled_%d" % len(mangled))

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if not _NO_PART_OF_A_PROGRAM.search(name):
                for part in (name.encode(), archive.read(name)):
                    yield _MANGLED.sub(counted, part)
