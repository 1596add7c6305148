"""Nothing in a file is executed, and each bad file gives one clear line."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import random
import struct
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaign import EXAMPLES, SEED
from combinations import one_at_a_time
from safetensors.torch import save_file
from torch import nn

from robench.errors import CheckpointError, RobenchError, UnsafeCheckpointError
from robench.models import draft_card, load_checkpoint, read_checkpoint
from robench.models.architectures.resnet import DigitsResNet
from robench.models.checkpoints import checkpoint_sha256, verify_sha256
from robench.models.drafting import find_state_dicts
from robench.models.pickle_scan import scan_pickles
from robench.records import ArchitectureSpec, InputSpec

SPEC = ArchitectureSpec(name="digits_resnet", arguments={"width": 2})


class Calls:
    """Pickles to a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return DigitsResNet(width=2).state_dict()


def zipped(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def protocol_4(content: Any, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that appears if anything of the hostile file was executed."""
    return tmp_path / "executed"


def payloads(canary: Path) -> dict[str, tuple[Any, str]]:
    command = f"touch {canary}"
    return {
        "os.system": (Calls(os.system, command), f"{os.system.__module__}.system"),
        "eval": (Calls(builtins.eval, f"open({str(canary)!r}, 'w')"), "builtins.eval"),
        "exec": (Calls(builtins.exec, f"open({str(canary)!r}, 'w')"), "builtins.exec"),
        "subprocess": (Calls(subprocess.run, ["touch", str(canary)]), "subprocess.run"),
        "getattr": (Calls(getattr, Calls(__import__, "os"), "system"), "builtins.__import__"),
        "torch.load": (Calls(torch.load, str(canary)), "torch.serialization.load"),
        "open": (Calls(open, str(canary), "w"), "io.open"),
        "path": (Calls(Path.touch, canary), "pathlib."),
    }


NAMES = list(payloads(Path("x")))


@pytest.mark.parametrize(
    ("write", "name", "place"),
    one_at_a_time(
        [zipped, legacy, bare, protocol_4], NAMES, ["value", "beside", "whole", "nested"]
    ),
)
def test_code_is_refused_and_named(
    tmp_path: Path, canary: Path, name: str, write: Callable[[Any, Path], None], place: str
) -> None:
    payload, words = payloads(canary)[name]
    content: Any = {
        "value": {"state_dict": payload},
        "beside": {**tensors(), "epoch": payload},
        "whole": payload,
        "nested": {"a": [{"b": (payload, 1)}], "state_dict": tensors()},
    }[place]
    path = tmp_path / "model.pt"
    if write is bare and place in ("beside", "nested"):
        content = {"state_dict": [payload]}  # a bare pickle holds no tensors
    write(content, path)
    for attempt in (
        lambda: read_checkpoint(path),
        lambda: draft_card(path, SPEC, num_classes=10),
        lambda: load_checkpoint(path, SPEC, num_classes=10),
    ):
        with pytest.raises(UnsafeCheckpointError, match="reading it would execute code") as raised:
            attempt()
        assert words in str(raised.value)
        assert str(raised.value).count("\n") == 0
    assert not canary.exists()


def test_trust_executes_what_was_refused(tmp_path: Path, canary: Path) -> None:
    """The canary works: with the user's word the same file does touch it."""
    path = tmp_path / "model.pt"
    torch.save({"state_dict": tensors(), "hook": payloads(canary)["os.system"][0]}, path)
    read_checkpoint(path, trust_pickle=True)
    assert canary.exists()


def test_whole_modules_load_on_the_users_word_only(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    network = DigitsResNet(width=2).eval()
    torch.save({"model": network}, path)
    with pytest.raises(UnsafeCheckpointError, match=r"resnet\.DigitsResNet"):
        load_checkpoint(path, SPEC, num_classes=10)
    inputs = torch.rand(2, 1, 8, 8)
    model = load_checkpoint(
        path, SPEC, num_classes=10, input=InputSpec(channels=1), trust_pickle=True
    )
    torch.testing.assert_close(model(inputs), network(inputs))


def test_numbers_of_numpy_beside_the_weights_are_no_code(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    content = {"net": tensors(), "acc": np.float64(91.5), "seed": np.int64(3)}
    torch.save(content, path)
    assert read_checkpoint(path)["acc"] == 91.5
    # As NumPy 1 wrote it.
    entries = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            entries[name] = archive.read(name)
    assert any(b"numpy._core" in data for data in entries.values())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"numpy._core.mul", b"numpy.core.mul"))
    assert read_checkpoint(path)["seed"] == 3


def test_object_arrays_of_numpy_are_refused(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "model.pt"
    array = np.array([payloads(canary)["os.system"][0]], dtype=object)
    torch.save({"net": tensors(), "array": array}, path)
    with pytest.raises(UnsafeCheckpointError, match="system"):
        read_checkpoint(path)
    assert not canary.exists()


# --- the scan ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program, expected",
    [
        (b"cos\nsystem\n(S'ls'\ntR.", "os.system"),
        (b"(S'ls'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'ls'\no.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.", "os.system"),
        # The names come from the memo.
        (b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93)R.", "os.system"),
        (b"\x80\x02\x82\x05.", "copyreg extension 5"),
        # A name that only exists once another call has made it.
        (b"\x80\x04c__builtin__\nstr\n)R\x8c\x06system\x93)R.", "a name that is computed"),
        # Harmless names above it on the stack do not hide it: they are taken off before.
        (b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x05torch\x8c\x04Size00\x93.", "computed"),
        # Damage after the call does not undo it.
        (b"\x80\x02cos\nsystem\nU\x02ls\x85R\xff\xff", "os.system"),
    ],
)
def test_scan_finds_names_however_they_are_spelled(program: bytes, expected: str) -> None:
    assert expected in ", ".join(scan_pickles(io.BytesIO(program)).imported)


def test_scan_follows_whatever_pickle_writes() -> None:
    content = {"a": [1, (2.5, None)], "b": {Path("x"): {3}}, "c": b"bytes", "d": [True] * 300}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = scan_pickles(io.BytesIO(pickle.dumps(content, protocol))).imported
        names = {name.rpartition(".")[2] for name in found}
        assert names <= {"PosixPath", "WindowsPath", "_reconstructor", "object"}, protocol
        assert names & {"PosixPath", "WindowsPath"}


def test_scan_of_honest_checkpoints_finds_nothing(tmp_path: Path) -> None:
    for write in (zipped, legacy, protocol_4):
        write({"net": tensors(), "acc": 1.0, "half": torch.ones(2).half()}, tmp_path / "m")
        with (tmp_path / "m").open("rb") as stream:
            assert scan_pickles(stream).imported == []


@pytest.mark.parametrize("seed", range(3))
def test_scan_never_fails_on_noise(seed: int) -> None:
    source = random.Random(seed)
    opcodes = bytes(range(256))
    for _ in range(300):
        noise = bytes(source.choices(opcodes, k=source.randrange(1, 80)))
        scan_pickles(io.BytesIO(b"\x80\x04" + noise))
        scan_pickles(io.BytesIO(noise))


# --- files that are no checkpoints ----------------------------------------------------------------


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\0" * 60_000_000)
    return buffer.getvalue()


def archive_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (b"\n\n  <HTML>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "is an HDF5 file"),
        (b"\x1f\x8b" + b"\0" * 50, "is gzip-compressed"),
        (b"hello", "is not a checkpoint"),
        (b"\0" * 1000, "is not a checkpoint"),
        (b"PK\x03\x04" + b"\0" * 200, "is a truncated or corrupt archive"),
        (archive_of("readme.txt"), "is an archive without weights"),
        (archive_of("../../../outside", "a/data.pkl"), "is truncated, corrupt or no checkpoint"),
        (bomb, "unpacks to 60,000,000 bytes"),
        (b"\x80\x02", "is truncated, corrupt or no checkpoint"),
        (b"\x80\x02}q\x00.", r"is a pickle that torch\.save did not write"),
        (b"{}", "no index of shards"),
        (b'{"weight_map": 3}', "no index of shards"),
        (b"[" * 100_000, "is not a checkpoint"),
        (b'{"a":' * 100_000, "no index of shards"),
        (struct.pack("<Q", 50) + b"{" + b" " * 10, "is truncated, corrupt or no checkpoint"),
        (struct.pack("<Q", 2**31) + b"{}", "is truncated, corrupt or no checkpoint"),
    ],
)
def test_other_files_are_recognised(
    tmp_path: Path, content: bytes | Callable[[], bytes], words: str
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(CheckpointError, match=words) as raised:
        read_checkpoint(path)
    assert raised.value.where == str(path)
    assert str(raised.value).count("\n") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["weights.bin"]


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_checkpoint(tmp_path / "absent")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_checkpoint(tmp_path / "dangling")


@pytest.mark.parametrize("write", [zipped, legacy, lambda c, p: save_file(c, p)])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated_files(tmp_path: Path, write: Callable[[Any, Path], None], share: float) -> None:
    path = tmp_path / "weights"
    write(tensors(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


# --- shards -----------------------------------------------------------------------------------------


def shards(folder: Path, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> Path:
    state = tensors()
    halves = dict(list(state.items())[:5]), dict(list(state.items())[5:])
    mapping = {}
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name)
        mapping.update(dict.fromkeys(half, name))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": mapping}))
    return index


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    index = shards(tmp_path)
    found = read_checkpoint(index)
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[k], v) for k, v in tensors().items())
    model = load_checkpoint(index, SPEC, num_classes=10, input=InputSpec(channels=1))
    inputs = torch.rand(1, 1, 8, 8)
    network = DigitsResNet(width=2).eval()
    network.load_state_dict(tensors())
    torch.testing.assert_close(model(inputs), network(inputs))


def test_the_hash_of_shards_covers_every_shard(tmp_path: Path) -> None:
    index = shards(tmp_path)
    digest = checkpoint_sha256(index)
    verify_sha256(index, digest)
    changed = {k: v + 1 for k, v in list(tensors().items())[5:]}
    save_file(changed, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="sha256 is"):
        verify_sha256(index, digest)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "sub/a", "..", "", 3, None])
def test_shards_cannot_lie_elsewhere(tmp_path: Path, name: Any) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_checkpoint(index)


def bin_shards(folder: Path, **changed: Any) -> Path:
    """As the Trainer saves them: ``pytorch_model-0000i-of-00002.bin`` and an index."""
    state = list(tensors().items())
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for file, half in zip(files, (state[:5], state[5:]), strict=True):
        torch.save(dict(half), folder / file)
    places = {name: files[i >= 5] for i, (name, _) in enumerate(state)}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places | changed}))
    return index


def test_torchs_own_shards_are_one_checkpoint(tmp_path: Path) -> None:
    found = read_checkpoint(bin_shards(tmp_path))
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[k], v) for k, v in tensors().items())


def test_no_shard_executes_anything(tmp_path: Path) -> None:
    index = bin_shards(tmp_path)
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(
        pickle.dumps({"w": Calls(os.mkdir, str(tmp_path / "executed"))}, 2)
    )
    with pytest.raises(CheckpointError):
        read_checkpoint(index)
    assert not (tmp_path / "executed").exists()


def test_a_tensor_is_where_the_index_says(tmp_path: Path) -> None:
    index = shards(tmp_path)
    first = next(iter(tensors()))
    later = dict(list(tensors().items())[5:])
    save_file({**later, first: tensors()[first]}, tmp_path / "b.safetensors")
    assert torch.equal(read_checkpoint(index)[first], tensors()[first])
    save_file({**later, first: tensors()[first] + 1}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=f"'{first}' is in several shards .* 'a.safetensors'"):
        read_checkpoint(index)
    save_file(later, tmp_path / "b.safetensors")
    index.write_text(index.read_text().replace(f'"{first}": "a.', f'"{first}": "b.'))
    with pytest.raises(
        CheckpointError, match=f"places '{first}' in 'b.safetensors', which lacks it"
    ):
        read_checkpoint(index)
    index.write_text('{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}')
    with pytest.raises(CheckpointError, match="names 'w' twice"):
        read_checkpoint(index)


def test_an_index_is_no_shard(tmp_path: Path) -> None:
    index = tmp_path / "a.index.json"
    index.write_text('{"weight_map": {"w": "a.index.json"}}')
    with pytest.raises(CheckpointError, match="is an index, where a shard should be"):
        read_checkpoint(index)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_is_not_called_corrupt(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({k: v.numpy() for k, v in tensors().items()}, protocol))
    with pytest.raises(CheckpointError, match=r"a pickle that torch\.save did not write") as raised:
        read_checkpoint(path)
    assert "corrupt" not in str(raised.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors: (the shard is missing|cannot be)"):
        read_checkpoint(index)
    # A shard goes by its content, and a pickle's refusal holds there too.
    torch.save(tensors(), tmp_path / "b.safetensors")
    assert read_checkpoint(index).keys() == tensors().keys()
    torch.save(nn.Linear(2, 2), tmp_path / "b.safetensors")
    with pytest.raises(UnsafeCheckpointError, match=r"b\.safetensors: reading it would execute"):
        read_checkpoint(index)


# --- mutations --------------------------------------------------------------------------------------


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few bytes flipped, cut, repeated, inserted or swapped with interesting numbers."""
    mutable = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(mutable))
        match source.randrange(6):
            case 0:
                mutable[at] ^= 1 << source.randrange(8)
            case 1:
                del mutable[at:]
            case 2:
                del mutable[at : at + source.randint(1, 64)]
            case 3:
                mutable[at:at] = source.randbytes(source.randint(1, 16))
            case 4:
                mutable[at : at + 4] = b"\xff\xff\xff\x7f"
            case 5:
                mutable[at:at] = mutable[at : at + source.randint(1, 256)]
        if not mutable:
            break
    return bytes(mutable)


def originals(folder: Path, canary: Path) -> list[bytes]:
    state = tensors()
    hostile = {"net": state, "hook": Calls(os.system, f"touch {canary}")}
    found = []
    for write, content in [
        (zipped, {"net": state}),
        (legacy, {"net": state}),
        (lambda c, p: save_file(c, p), state),
        (zipped, hostile),
        (legacy, hostile),
        (bare, {"hook": hostile["hook"]}),
    ]:
        write(content, folder / "original")
        found.append((folder / "original").read_bytes())
    found.append(shards(folder).read_bytes())
    return found


def survive(folder: Path, canary: Path, rounds: int, seed: int) -> int:
    """Read mutated files; return how many still loaded. Anything but a RobenchError escapes."""
    source = random.Random(seed)
    files = originals(folder, canary)
    path = folder / "mutant"
    loaded = 0
    lines = []
    before = None
    for i in range(rounds):
        path.write_bytes(mutate(files[i % len(files)], source))
        before = before or sorted(p.name for p in folder.iterdir())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                find_state_dicts(read_checkpoint(path))
            loaded += 1
        except RobenchError as error:
            lines.append(str(error))
        assert not canary.exists()
    assert not [line for line in lines if "\n" in line or len(line) > 1000]
    assert sorted(p.name for p in folder.iterdir()) == before
    return loaded


def test_mutated_files_never_execute_hang_or_crash(tmp_path: Path, canary: Path) -> None:
    loaded = survive(tmp_path, canary, rounds=140, seed=0)
    # Flips inside tensor data are no damage; if none loaded, the mutations would prove nothing.
    assert 0 < loaded < 140


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 6))
def test_ten_thousand_mutations(tmp_path: Path, canary: Path, part: int) -> None:
    rounds = EXAMPLES // 5
    assert survive(tmp_path, canary, rounds=rounds, seed=5 * SEED + part) < rounds
