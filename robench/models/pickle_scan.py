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
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass
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

# What training scripts leave beside the weights. Nothing of it is imported: a stand-in is read in
# its place. Of other packages these are classes, by the way that their names are written.
_BESIDE = re.compile(
    r"^(argparse\.Namespace|types\.SimpleNamespace|pathlib\.(_local\.)?\w*Path"
    r"|datetime\.\w+|zoneinfo\.ZoneInfo(\._unpickle)?|decimal\.Decimal|fractions\.Fraction"
    r"|uuid\.(UUID|SafeUUID)|collections\.\w+|builtins\.(object|slice|range|bytes|str|bool)"
    r"|copyreg\._reconstructor|array\.(array|_array_reconstructor)|random\.Random"
    r"|numpy\.(_core|core)\.(multiarray\._reconstruct|numeric\._frombuffer)"
    r"|numpy\.(ndarray|matrix|bool_?|str_|bytes_|void|record|[a-z]+\d+(_\w+)?)"
    r"|numpy\.random\._\w+\.\w+|numpy\.ma\.core\.(_mareconstruct|MaskedArray)"
    r"|torch\.optim\.(\w+\.)+[A-Z]\w+)$"
)
_CLASS = re.compile(r"^(\w+\.)+[A-Z]\w*$")


@dataclass(frozen=True)
class PickleScan:
    """What the pickles of a checkpoint file would import, found without running them.

    Attributes:
        names: ``module.attribute``, in order, each once.
        whole: every pickle came to its end.
        plain: the file is one pickle and nothing else, as ``pickle.dump`` writes it.
    """

    names: tuple[str, ...]
    whole: bool
    plain: bool

    @property
    def imported(self) -> list[str]:
        """The names without what only rebuilds tensors, containers and numbers."""
        return [name for name in self.names if not _DATA.match(name)]

    @property
    def code(self) -> list[str]:
        """Of these the ones that are not harmless beside weights."""
        return [name for name in self.imported if not _is_beside(name)]

    @property
    def beside(self) -> list[str]:
        """The names that a stand-in can take the place of."""
        ours = ("numpy.", "builtins.")
        return [name for name in self.names if _is_beside(name) or name.startswith(ours)]


def _is_beside(name: str) -> bool:
    top = name.partition(".")[0]
    ours = top in sys.stdlib_module_names or top in ("torch", "numpy")
    return bool(_BESIDE.match(name)) or (bool(_CLASS.match(name)) and not ours)


def scan_pickles(stream: BinaryIO) -> PickleScan:
    """Scan a checkpoint file in the zip or the legacy layout.

    Damage ends the scan of the pickle it is in, not the scan of the others; what comes before it
    would be imported all the same.
    """
    names: dict[str, None] = {}
    ends: list[bool] = []
    plain = False
    for data, expected in _pickles(stream):
        ends += [_add_names(data, names)]
        plain = expected > 1 and ends == [True] and data.tell() == data.getbuffer().nbytes
        while ends[-1] and expected > 1:
            expected -= 1
            ends += [_add_names(data, names)]
    return PickleScan(tuple(names), bool(ends) and all(ends), plain)


def _pickles(stream: BinaryIO) -> Iterator[tuple[io.BytesIO, int]]:
    """Each entry that holds pickles, and how many there should be in it."""
    stream.seek(0)
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        yield io.BytesIO(stream.read(_MAX_PICKLE)), _LEGACY_PICKLES
        return
    try:
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl") and entry.file_size <= _MAX_PICKLE:
                    yield io.BytesIO(archive.read(entry)), 1
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
