"""Names that a checkpoint's pickles would import, found without running them. Imports no torch.

The scan explains a refusal; the refusal itself does not rest on it
(``torch.load(weights_only=True)`` decides what may be loaded). Written here because
``torch.serialization.get_unsafe_globals_in_checkpoint`` reads neither the layout before torch 1.6
nor pickle's protocol 4, and gives up on any opcode that torch itself does not write.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

_MAX_OPCODES: Final = 5_000_000
_MAX_PICKLE: Final = 256 * 2**20
_LEGACY_PICKLES: Final = 5
"""A legacy checkpoint is five pickles (magic, protocol, system, object, keys) and raw storage."""

# What tensors, containers and numbers need to be rebuilt.
_DATA = re.compile(
    r"^(collections\.(OrderedDict|defaultdict|Counter)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.(\w+Storage|Size|device|dtype|Tensor|[a-z]+\d+|serialization\._get_layout)"
    r"|torch\.storage\.\w+Storage|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|_codecs\.encode|builtins\.(set|frozenset|bytearray|complex|dict|list|tuple|int|float)"
    r"|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.\w+)$"
)


def imported_names(stream: BinaryIO) -> list[str]:
    """``module.attribute`` of everything that the pickles of a checkpoint file would import, in
    order, each once, without what only rebuilds tensors, containers and numbers.

    The file is in the zip or the legacy layout. Damage ends the scan of the pickle it is in, not
    the scan of the others; what comes before it would be imported all the same.
    """
    names: dict[str, None] = {}
    for data in _pickles(stream):
        for _ in range(_LEGACY_PICKLES):
            if not _add_names(data, names):
                break
    return [name for name in names if not _DATA.match(name)]


def _pickles(stream: BinaryIO) -> Iterator[io.BytesIO]:
    stream.seek(0)
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        yield io.BytesIO(stream.read(_MAX_PICKLE))
        return
    try:
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl") and entry.file_size <= _MAX_PICKLE:
                    yield io.BytesIO(archive.read(entry))
    except Exception:  # A damaged archive raises many things; torch refuses it by itself.
        return


def _add_names(data: io.BytesIO, names: dict[str, None]) -> bool:
    """Read one pickle; return whether it came to its end, after which ``data`` is left."""
    # The two values pushed last, None where they are no known text: module and attribute of the
    # opcode that takes them from the stack.
    recent: tuple[str | None, str | None] = (None, None)
    memo: dict[int, str | None] = {}
    argument: Any
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MAX_OPCODES:
                return False
            name = opcode.name
            if name in ("GLOBAL", "INST"):
                names[_modern_name(*argument.split(" ", 1))] = None
            elif name == "STACK_GLOBAL":
                module, attribute = recent
                if module is None or attribute is None:
                    names["a name that is computed"] = None
                else:
                    names[_modern_name(module, attribute)] = None
            elif name.startswith("EXT"):
                names[f"copyreg extension {argument}"] = None
            if name == "MEMOIZE":
                memo[len(memo)] = recent[1]
            elif name.endswith("PUT"):
                memo[argument] = recent[1]
            elif name.endswith("GET"):
                recent = (recent[1], memo.get(argument))
            elif name.endswith(("STRING", "UNICODE", "UNICODE8")):
                recent = (recent[1], argument)
            elif opcode.stack_before or opcode.stack_after:
                recent = (None, None)
    except Exception:  # Damaged bytes raise many things here; all mean the same.
        return False
    return True


def _modern_name(module: str, attribute: str) -> str:
    """``module.attribute`` as Python 3 imports it; old protocols write Python 2's names."""
    renamed = NAME_MAPPING.get((module, attribute))
    return ".".join(renamed or (IMPORT_MAPPING.get(module, module), attribute))
