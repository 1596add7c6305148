from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import one_at_a_time
from safetensors.torch import save_file
from torch import Tensor, nn

from robench.errors import (
    CardError,
    CheckpointError,
    DeviceError,
    HashMismatchError,
    KeyMismatchError,
    RobenchError,
    UnsafeCheckpointError,
    UsageError,
)
from robench.models import (
    buffer_fingerprint,
    draft_card,
    load_checkpoint,
    load_model,
    wrap_module,
    write_card,
)
from robench.models.architectures.resnet import DigitsResNet
from robench.records import ModelCard

INPUTS = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> DigitsResNet:
    torch.manual_seed(0)
    built = DigitsResNet(width=4)
    built.train()
    built(torch.rand(16, 1, 8, 8))  # moves the running statistics off their defaults
    return built.eval()


def card_for(path: Path, **fields: Any) -> ModelCard:
    weights = {"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    weights.update(fields.pop("weights", {}))
    content = {
        "name": "tiny",
        "dataset": "digits",
        "num_classes": 10,
        "threat_model": "Linf-0.2",
        "defense": "standard",
        "architecture": {"name": "digits_resnet", "arguments": {"width": 4}},
        "input": {"channels": 1, "size": [8, 8]},
        "weights": weights,
        **fields,
    }
    return ModelCard.model_validate(content)


def load(path: Path, **fields: Any) -> Any:
    return load_model(write_card(card_for(path, **fields), path.parent / "card.toml"))


def test_a_card_and_its_weights_give_the_networks_own_logits(
    network: DigitsResNet, tmp_path: Path
) -> None:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    model = load(tmp_path / "weights.safetensors")
    torch.testing.assert_close(model(INPUTS), network(INPUTS), rtol=0, atol=0)
    before = buffer_fingerprint(model.network)
    assert before == buffer_fingerprint(network)
    model(INPUTS)
    assert buffer_fingerprint(model.network) == before
    summary = model.summary
    assert summary.id == "digits/Linf-0.2/tiny"
    assert summary.parameters == sum(p.numel() for p in network.parameters())
    assert summary.weights_sha256 == card_for(tmp_path / "weights.safetensors").weights.sha256


@pytest.mark.parametrize(
    ("prefix", "dtype", "legacy"),
    one_at_a_time(
        ["module.", "", "_orig_mod.module."],
        [torch.float16, torch.bfloat16, torch.float64],
        [False, True],
    ),
)
def test_nested_prefixed_files_of_any_precision(
    network: DigitsResNet, tmp_path: Path, prefix: str, dtype: torch.dtype, legacy: bool
) -> None:
    path = tmp_path / "ckpt.t7"
    state = {
        prefix + k: v.to(dtype) if v.is_floating_point() else v
        for k, v in network.state_dict().items()
    }
    torch.save(
        {"net": {"weights": state}, "acc": 91.5, "epoch": 3},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    model = load(path, weights={"key": "net.weights", "strip_prefix": prefix})
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    by_hand = DigitsResNet(width=4).eval()
    by_hand.load_state_dict(
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    )
    torch.testing.assert_close(model(INPUTS), by_hand(INPUTS), rtol=0, atol=0)
    # And the same without saying anything about the file's layout.
    guessed = load_checkpoint(
        path,
        card_for(path).architecture,
        num_classes=10,
        input=card_for(path).input,
    )
    torch.testing.assert_close(guessed(INPUTS), model(INPUTS), rtol=0, atol=0)


def test_the_hash_is_compared_before_the_file_is_parsed(
    network: DigitsResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    card = card_for(path)
    path.write_bytes(path.read_bytes() + b"\0")

    def parse(*_: Any, **__: Any) -> None:
        raise AssertionError("parsed before the hash was compared")

    monkeypatch.setattr(torch, "load", parse)
    write_card(card, tmp_path / "card.toml")
    with pytest.raises(HashMismatchError, match=card.weights.sha256):
        load_model(tmp_path)


def test_differing_names_are_listed_both_ways(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = dict(network.state_dict())
    state["classifier.weight"] = state.pop("fc.weight")
    torch.save(state, path)
    with pytest.raises(KeyMismatchError) as raised:
        load(path)
    assert "1 missing from the file: fc.weight" in str(raised.value)
    assert "1 unexpected in the file: classifier.weight" in str(raised.value)


def test_long_lists_are_shortened(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(50)}, path)
    with pytest.raises(KeyMismatchError, match=r"50 unexpected .*and 42 more"):
        load(path)


def test_a_forgotten_prefix_is_recognised(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, path)
    with pytest.raises(KeyMismatchError, match=r"Set weights.strip_prefix to 'module\.'"):
        load(path)
    with pytest.raises(KeyMismatchError, match=r"no parameter name begins with 'net\.'"):
        load(path, weights={"strip_prefix": "net."})


def test_another_number_of_classes_is_named(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(KeyMismatchError, match=r"fc.weight 10x4 in the file, 7x4.*to 10"):
        load(path, num_classes=7)


def test_another_width_is_a_shape_mismatch(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    arguments = {"name": "digits_resnet", "arguments": {"width": 5}}
    with pytest.raises(KeyMismatchError, match=r"conv1.weight 4x1x3x3 in the file, 5x1x3x3"):
        load(path, architecture=arguments)


def test_integer_weights_are_refused(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({k: v.to(torch.int8) for k, v in network.state_dict().items()}, path)
    with pytest.raises(KeyMismatchError, match=r"is torch.int8, the network's torch.float32"):
        load(path)


def test_sparse_weights_are_refused(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = dict(network.state_dict())
    state["fc.weight"] = state["fc.weight"].to_sparse()
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"fc.weight is not a plain dense tensor"):
        load(path)


def test_files_without_batch_counters_still_load(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(state, path)
    torch.testing.assert_close(load(path)(INPUTS), network(INPUTS), rtol=0, atol=0)


@pytest.mark.parametrize(
    "content, key, words",
    [
        ({"net": {"a": 1}}, "nett", "has no key 'nett'. It has: 'net'"),
        ({"net": {"a": 1}}, "net.b", "has no key 'net.b'"),
        ({"net": {"a": 1}}, "net.a.b", "nothing at key"),
        ({"net": 3}, "net", "holds int where a state dict should be"),
        ({"net": {}}, "net", "holds no tensors"),
        ({"w": torch.zeros(1), "epoch": 3}, None, "epoch are no tensors"),
        ({"w": [torch.zeros(1)]}, "w", "holds list"),
    ],
)
def test_wrong_places_of_the_state_dict(
    tmp_path: Path, content: Any, key: str | None, words: str
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=words):
        load(path, weights={"key": key})


def test_architecture_errors(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(RobenchError, match="Did you mean 'digits_resnet'"):
        load(path, architecture={"name": "digits_resnett"})
    wrong = {"name": "digits_resnet", "arguments": {"widht": 4}}
    with pytest.raises(CardError, match=r"takes no argument 'widht'. Did you mean 'width'"):
        load(path, architecture=wrong)
    clash = {"name": "digits_resnet", "arguments": {"num_classes": 4}}
    with pytest.raises(CardError, match="belongs to the card itself"):
        load(path, architecture=clash)


def test_missing_weights_and_devices(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    card = card_for(path)
    with pytest.raises(UsageError, match="is a weights file, not a card"):
        load_model(path)
    write_card(card, tmp_path / "card.toml")
    with pytest.raises(DeviceError, match="unknown device 'nonsense'"):
        load_model(tmp_path, device="nonsense")
    assert load_model(tmp_path, device="auto").num_classes == card.num_classes
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path)


def test_package_paths_stay_in_their_package(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(RobenchError, match=r"not installed. pip install absent_package"):
        load(path, weights={"path": "package:absent_package/weights.pt"})
    with pytest.raises(CheckpointError, match="leads out of the package"):
        load(path, weights={"path": "package:robench/../../etc/passwd"})


def test_a_card_that_is_not_trusted_runs_no_code_of_its_choice(
    network: DigitsResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robench.trust import trust

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "chosen_by_card.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_suffix('.ran').touch()\n"
        "from robench.models.architectures.resnet import DigitsResNet\n"
        "def make(num_classes, width):\n"
        "    return DigitsResNet(num_classes, width=width)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "lib")
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    foreign = {"name": "chosen_by_card:make", "arguments": {"width": 4}}
    with pytest.raises(UnsafeCheckpointError, match="would import and call chosen_by_card:make"):
        load(path, architecture=foreign)
    assert not (tmp_path / "lib" / "chosen_by_card.ran").exists()
    trusted = load_model(tmp_path, trust_code=True)
    torch.testing.assert_close(trusted(INPUTS), network(INPUTS))
    trust(tmp_path / "card.toml")
    torch.testing.assert_close(load_model(tmp_path)(INPUTS), network(INPUTS))


def test_foreign_callables_that_fail_are_named(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    for name, words in [
        ("collections:OrderedDict", "returns OrderedDict, not an nn.Module"),
        ("math:pi", "is not callable"),
        ("math:piii", "has no attribute 'piii'"),
        ("no_such_module:x", "cannot import 'no_such_module'"),
        ("torch.nn:Linear", "cannot be built: TypeError"),
    ]:
        with pytest.raises(RobenchError, match=words):
            load_checkpoint(path, name, num_classes=10)


@pytest.mark.parametrize(
    "name, words",
    [
        ("torchvision:resnet8", "unknown torchvision architecture 'resnet8'"),
        ("timm:resnet8x", "unknown timm architecture 'resnet8x'"),
        ("timm:hf-hub:someone/model", "unknown timm architecture"),
    ],
)
def test_unknown_library_architectures(
    network: DigitsResNet, tmp_path: Path, name: str, words: str
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(RobenchError, match=words):
        load_checkpoint(path, name, num_classes=10)


def test_library_architectures_by_name(tmp_path: Path) -> None:
    from timm import create_model
    from torchvision.models import squeezenet1_1

    inputs = torch.rand(1, 3, 64, 64)
    tv = squeezenet1_1(num_classes=7).eval()
    torch.save({"model": tv.state_dict()}, tmp_path / "tv.pth")
    model = load_checkpoint(tmp_path / "tv.pth", "torchvision:squeezenet1_1", num_classes=7)
    torch.testing.assert_close(model(inputs), tv(inputs))

    tm = create_model("test_vit", num_classes=5).eval()
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in tm.state_dict().items()}}, tmp_path / "t"
    )
    model = load_checkpoint(tmp_path / "t", "timm:test_vit", num_classes=5)
    inputs = torch.rand(1, 3, *tm.default_cfg["input_size"][1:])
    torch.testing.assert_close(model(inputs), tm(inputs))


@pytest.mark.parametrize(
    "name, argument",
    [
        ("timm:test_vit", "pretrained"),
        ("timm:test_vit", "checkpoint_path"),
        ("torchvision:resnet18", "weights"),
    ],
)
def test_a_card_cannot_make_a_library_load_other_weights(
    network: DigitsResNet, tmp_path: Path, name: str, argument: str
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(CardError, match=f"{argument} would load other weights"):
        load(path, architecture={"name": name, "arguments": {argument: "x"}})


def test_torchvision_takes_three_channels(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(CardError, match="take 3 channels, not 1"):
        load(path, architecture={"name": "torchvision:resnet18"})


# --- modules of one's own --------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs.flatten(1)) * self.scale


def test_a_wrapped_module_is_left_as_it_was() -> None:
    module = Scaled().train()
    wrapped = wrap_module(module, num_classes=3, name="mine")
    inputs = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(wrapped(inputs), module(inputs))
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    with torch.no_grad():
        module.fc.weight += 1
    assert not torch.equal(wrapped(inputs), module(inputs))
    shared = wrap_module(module, num_classes=3, share=True)
    assert shared.network is module
    assert not module.training


def test_a_wrapped_modules_fingerprint_follows_what_it_computes() -> None:
    torch.manual_seed(0)
    module = Scaled()

    def fingerprint(module: nn.Module, **fields: Any) -> str:
        return wrap_module(module, num_classes=3, **fields).summary.fingerprint

    base = fingerprint(module)
    assert fingerprint(module, name="other", dataset="digits") == base
    assert fingerprint(module.train()) == fingerprint(module.eval()) == base
    assert fingerprint(module, input={"mean": [0.5]}) != base
    module.scale = 2.0
    assert fingerprint(module) != base
    module.scale = 1.0
    assert fingerprint(module) == base
    seen: list[Any] = []
    handle = module.register_full_backward_hook(lambda *_: seen.append(1))
    handle.remove()
    assert fingerprint(module) == base
    module.transform = lambda logits: logits  # type: ignore[assignment]
    one = fingerprint(module)
    module.transform = lambda logits: -logits  # type: ignore[assignment]
    assert len({one, base, fingerprint(module)}) == 3


def test_wrong_specifications_of_a_wrapped_module() -> None:
    with pytest.raises(CardError, match="low"):
        wrap_module(Scaled(), num_classes=3, input={"low": 2.0})
    with pytest.raises(UsageError, match="not a threat model"):
        wrap_module(Scaled(), num_classes=3, threat_model="8/255")
    module = Scaled()
    module.cached = module.fc(torch.ones(4))  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"cannot be copied.*share=True"):
        wrap_module(module, num_classes=3)


# --- programs ----------------------------------------------------------------------------------


def test_torchscript_files_load_on_the_users_word(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, INPUTS), path)
    spec = card_for(path).input
    for trust in (False, True):
        card = draft_card(path, "program", num_classes=10, input=spec)
        if not trust:
            with pytest.raises(UnsafeCheckpointError, match="TorchScript file: a program"):
                load_model(card)
    model = load_model(card, trust_pickle=True)
    torch.testing.assert_close(model(INPUTS[:2]), network(INPUTS[:2]))
    inputs = INPUTS.clone().requires_grad_()
    assert torch.autograd.grad(model(inputs).sum(), inputs)[0].abs().sum() > 0


def test_exported_files_load_on_the_users_word(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "exported.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (INPUTS,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    with pytest.raises(UnsafeCheckpointError, match=r"torch.export file: a program"):
        load_checkpoint(path, "program", num_classes=10)
    model = load_checkpoint(path, "program", num_classes=10, trust_pickle=True)
    torch.testing.assert_close(model(INPUTS[:2]), network(INPUTS[:2]))
    assert not model.network.training


def test_weights_are_not_a_program(network: DigitsResNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match="weights without a network"):
        load_checkpoint(path, "program", num_classes=10, trust_pickle=True)
