"""What a pickle would call, found without running it. Imports no torch.

A pickle is a program for a stack machine. The scan runs that program symbolically: it follows
strings, the memo and the calls, but imports and calls nothing. It explains a refusal; the refusal
itself does not rest on it (``torch.load(weights_only=True)`` decides what may be loaded).
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

__all__ = ["PickleCall", "is_data_global", "scan_checkpoint", "scan_pickle"]

_MAX_OPCODES: Final = 5_000_000
_MAX_PICKLE: Final = 256 * 2**20
_LEGACY_PICKLES: Final = 5
"""A legacy checkpoint is five pickles (magic, protocol, system, object, keys) and raw storage."""

_DATA_GLOBAL = re.compile(
    r"^(collections\.(OrderedDict|defaultdict|Counter)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.(\w+Storage|Size|device|dtype|Tensor|[a-z]+\d+|serialization\._get_layout)"
    r"|torch\.storage\.\w+Storage|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|_codecs\.encode|builtins\.(set|frozenset|bytearray|complex|dict|list|tuple|int|float)"
    r"|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.\w+)$"
)


def is_data_global(name: str) -> bool:
    """Whether tensors, containers and numbers need the name ``module.attribute`` to be rebuilt."""
    return _DATA_GLOBAL.match(name) is not None


@dataclass(frozen=True)
class PickleCall:
    """Something that loading would import, and call if ``arguments`` is given.

    Args:
        name: ``module.attribute``.
        arguments: the arguments as far as they are literal (``"'rm -rf /'"``), or None where the
            name is only referred to.
    """

    name: str
    arguments: str | None = None

    def __str__(self) -> str:
        return self.name if self.arguments is None else f"{self.name}({self.arguments})"


class _Mark:
    pass


@dataclass(frozen=True)
class _Global:
    name: str


class _Unknown:
    """A value that the scan does not follow."""


_UNKNOWN: Final = _Unknown()
_MARK: Final = _Mark()


def scan_pickle(stream: io.BytesIO) -> tuple[list[PickleCall], bool]:
    """The imports and calls of the pickle at the stream's position, in order, each once.

    Those that only rebuild tensors and containers are left out.

    Returns:
        The calls, and whether the pickle was read to its STOP, after which the stream is left.
        What comes before damage would be executed all the same, so it is reported too.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            machine.step(opcode, argument)
            if count > _MAX_OPCODES:
                return list(machine.calls), False
    except Exception:  # Damaged bytes raise many things here; all mean the same.
        return list(machine.calls), False
    return list(machine.calls), True


class _Machine:
    """The unpickler's stack machine over literals, globals and unknowns."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.calls: dict[PickleCall, None] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        handler = getattr(self, f"_op_{name.lower()}", None)
        if handler is not None:
            handler(argument)
        elif name.startswith(("GET", "BINGET", "LONG_BINGET")):
            self.stack.append(self.memo.get(int(argument), _UNKNOWN))
        elif name.startswith(("PUT", "BINPUT", "LONG_BINPUT")):
            self.memo[int(argument)] = self.stack[-1] if self.stack else _UNKNOWN
        elif not opcode.stack_before and len(opcode.stack_after) == 1 and argument is not None:
            self.stack.append(argument)
        else:
            self._generic(opcode)

    def _generic(self, opcode: pickletools.OpcodeInfo) -> None:
        kinds = [kind.name for kind in opcode.stack_before]
        if "mark" in kinds:
            self._pop_mark()
            below = kinds[: kinds.index("mark")]
        else:
            below = kinds
        kept = self.stack[-1] if below and opcode.stack_after and self.stack else _UNKNOWN
        for _ in below:
            self._pop()
        for kind in opcode.stack_after:
            # APPEND, SETITEMS and the like leave the container that they fill.
            self.stack.append(kept if kind.name in ("list", "dict", "set") else _UNKNOWN)

    def _pop(self) -> Any:
        return self.stack.pop() if self.stack else _UNKNOWN

    def _pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            item = self.stack.pop()
            if item is _MARK:
                break
            items.append(item)
        return items[::-1]

    def _refer(self, name: str) -> None:
        self._record(PickleCall(name))
        self.stack.append(_Global(name))

    def _call(self, function: Any, arguments: Any) -> None:
        name = function.name if isinstance(function, _Global) else "a computed function"
        # The call says more than the mere reference before it.
        self.calls.pop(PickleCall(name), None)
        self._record(PickleCall(name, _literal(arguments)))
        self.stack.append(_UNKNOWN)

    def _record(self, call: PickleCall) -> None:
        if not is_data_global(call.name):
            self.calls[call] = None

    # One method an opcode, named after it.

    def _op_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _op_pop(self, _: Any) -> None:
        self._pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._pop_mark()

    def _op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1] if self.stack else _UNKNOWN)

    def _op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1] if self.stack else _UNKNOWN

    def _op_none(self, _: Any) -> None:
        self.stack.append(None)

    def _op_newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def _op_newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def _op_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def _op_tuple1(self, _: Any) -> None:
        self._tuple(1)

    def _op_tuple2(self, _: Any) -> None:
        self._tuple(2)

    def _op_tuple3(self, _: Any) -> None:
        self._tuple(3)

    def _tuple(self, size: int) -> None:
        self.stack.append(tuple([self._pop() for _ in range(size)][::-1]))

    def _op_global(self, argument: str) -> None:
        self._refer(_modern_name(*argument.split(" ", 1)))

    def _op_stack_global(self, _: Any) -> None:
        attribute, module = self._pop(), self._pop()
        known = isinstance(attribute, str) and isinstance(module, str)
        self._refer(_modern_name(module, attribute) if known else "a name that is computed")

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._pop_mark())
        self._call(_Global(_modern_name(*argument.split(" ", 1))), arguments)

    def _op_obj(self, _: Any) -> None:
        items = self._pop_mark()
        self._call(items[0] if items else _UNKNOWN, tuple(items[1:]))

    def _op_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    def _op_newobj(self, _: Any) -> None:
        self._op_reduce(_)

    def _op_newobj_ex(self, _: Any) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        self._call(function, arguments if not keywords else (arguments, keywords))

    def _extension(self, argument: int) -> None:
        self._refer(f"copyreg extension {argument}")

    _op_ext1 = _op_ext2 = _op_ext4 = _extension


def _modern_name(module: str, attribute: str = "") -> str:
    """``module.attribute`` as Python 3 imports it; old protocols write Python 2's names."""
    renamed = NAME_MAPPING.get((module, attribute))
    if renamed is None:
        renamed = (IMPORT_MAPPING.get(module, module), attribute)
    return ".".join(renamed)


def _literal(arguments: Any, depth: int = 0) -> str:
    """A preview. Bounded in depth and length, because tuples may share parts exponentially."""
    if not isinstance(arguments, tuple) or depth > 2:
        return "…"
    parts = [_literal_one(argument, depth) for argument in arguments[:6]]
    text = ", ".join(parts if len(arguments) <= 6 else [*parts, "…"])
    return text if len(text) <= 80 else text[:79] + "…"


def _literal_one(value: Any, depth: int) -> str:
    if isinstance(value, _Global):
        return value.name
    if isinstance(value, tuple):
        return f"({_literal(value, depth + 1)})"
    if isinstance(value, (str, bytes)):
        return repr(value[:200])
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    # Longer integers are refused by Python's own conversion to text.
    return repr(value) if isinstance(value, int) and abs(value) < 2**64 else "…"


def scan_checkpoint(stream: BinaryIO) -> list[PickleCall]:
    """Imports and calls of every pickle in a checkpoint file, in the zip or the legacy layout.

    Damage ends the scan of the pickle it is in, not the scan of the others.
    """
    stream.seek(0)
    if zipfile.is_zipfile(stream):
        pickles = _zipped_pickles(stream)
    else:
        stream.seek(0)
        pickles = [io.BytesIO(stream.read(_MAX_PICKLE))]
    calls: dict[PickleCall, None] = {}
    for data in pickles:
        for _ in range(_LEGACY_PICKLES):
            found, complete = scan_pickle(data)
            calls.update(dict.fromkeys(found))
            if not complete:
                break
    return list(calls)


def _zipped_pickles(stream: BinaryIO) -> list[io.BytesIO]:
    pickles = []
    try:
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl") and entry.file_size <= _MAX_PICKLE:
                    pickles.append(io.BytesIO(archive.read(entry)))
    except Exception:  # A damaged archive: torch refuses it by itself.
        return pickles
    return pickles
