"""Models of other collections: the Hugging Face Hub, and RobustBench through its own package."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from robench.errors import (
    CardError,
    CheckpointError,
    MissingDependencyError,
    UsageError,
    one_line,
)
from robench.files import cache_folder, expanded, read_text
from robench.models.checkpoints import shard_names
from robench.models.drafting import draft_card
from robench.models.loading import wrap_module
from robench.models.transformers_repositories import Described, described, is_classifier
from robench.models.wrapper import RobenchModel
from robench.records import ArchitectureSpec, Flag, InputSpec, ModelCard, PreprocessingSpec
from robench.registry import near_misses

_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADDRESS = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")


def _split(address: str) -> tuple[str, str | None]:
    match = _ADDRESS.match(address)
    if match is None:
        raise UsageError(
            f"{address!r} is not a repository of the Hub", hint="Write it as hf:OWNER/NAME@REVISION"
        )
    return match["repo"], match["revision"]


def local_folder(address: str) -> Path | None:
    """The folder that an address names by its path, such as ``./tiny``: what a repository would hold.

    Raises:
        CheckpointError: it names one that does not exist.
    """
    if not address.startswith((".", "/", "~", os.sep)) and not os.path.isabs(address):
        return None
    folder = expanded(address)
    if not folder.is_dir():
        raise CheckpointError("the folder does not exist", where=f"hf:{address}")
    return folder


def fetch_hub_file(address: str, name: str) -> Path | None:
    """Download one file of a repository into the Hub's own cache.

    Args:
        address: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
        name: the file's path in the repository.

    Returns:
        The local file, or None if the repository has no such file.

    Raises:
        MissingDependencyError: ``huggingface_hub`` is not installed.
        UsageError: the address has another form.
        CheckpointError: no such repository, no access, or no connection.
    """
    if (folder := local_folder(address)) is not None:
        return folder / name if (folder / name).is_file() else None
    repo, revision = _split(address)
    try:
        # Optional package, needed for this source only.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingDependencyError(
            "huggingface_hub is not installed",
            where=f"hf:{address}",
            hint="pip install robench[hub]",
        ) from error
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except Exception as error:  # The Hub's client raises errors of several HTTP libraries.
        # The local kind, a subclass, means that there is no connection.
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise CheckpointError(
            f"cannot be fetched: {one_line(error)}",
            where=f"hf:{address}",
            hint="Check the name and the network",
        ) from error


def fetch_hub_weights(address: str) -> Path:
    """The weights of a repository: safetensors if it has them, shards included.

    Raises:
        CheckpointError: the repository has no weights under a usual name, or cannot be reached.
        MissingDependencyError, UsageError: as :func:`fetch_hub_file`.
    """
    for name in _WEIGHTS:
        path = fetch_hub_file(address, name)
        if path is None:
            continue
        for shard in shard_names(path) if name.endswith(".json") else ():
            if fetch_hub_file(address, shard) is None:
                raise CheckpointError(
                    f"names a shard {shard!r} that it lacks", where=f"hf:{address}"
                )
        return path
    raise CheckpointError(
        f"has none of {', '.join(_WEIGHTS)}",
        where=f"hf:{address}",
        hint="Download the file yourself and use it with --arch",
    )


def _read_json(path: Path, address: str) -> Mapping[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is damaged: {error}", where=f"hf:{address}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name} is no JSON object", where=f"hf:{address}")
    return content


def hub_card(address: str) -> ModelCard:
    """Download a model that timm or transformers can read, and describe it.

    Architecture, classes, input size and normalisation come from the repository's ``config.json``, of
    transformers also from its ``preprocessor_config.json``. The hash in the card is the downloaded file's
    own: name a revision to pin it.

    Args:
        address: ``OWNER/NAME[@REVISION]``, or the path of a folder with the same files.

    Raises:
        CheckpointError: the repository is of neither kind, or cannot be reached.
        MissingDependencyError, UsageError: as :func:`fetch_hub_file`.
    """
    folder = local_folder(address)
    name = _split(address)[0] if folder is None else folder.resolve().name
    path = fetch_hub_file(address, "config.json")
    config = {} if path is None else _read_json(path, address)
    try:
        found = _described(config, address)
    except (TypeError, ValueError, CardError) as error:
        raise CheckpointError(
            f"config.json: {' '.join(str(error).split())}", where=f"hf:{address}"
        ) from error
    return draft_card(
        fetch_hub_weights(address),
        found.architecture,
        num_classes=found.num_classes,
        dataset="imagenet" if found.num_classes == 1000 else "custom",
        name=name.replace("/", "_"),
        input=found.input,
        preprocessing=found.preprocessing,
    )


def _described(config: Mapping[str, Any], address: str) -> Described:
    details, name = config.get("pretrained_cfg"), config.get("architecture")
    if isinstance(name, str) and isinstance(details, Mapping):
        return _timms(name, details, config)
    if not is_classifier(config):
        raise CheckpointError(
            "its config.json describes no image classifier of timm or transformers",
            where=f"hf:{address}",
            hint="Download the weights yourself and use them with --arch",
        )
    path = fetch_hub_file(address, "preprocessor_config.json")
    if path is None:
        raise CheckpointError(
            "has no preprocessor_config.json, which says how images are scaled and normalised",
            where=f"hf:{address}",
            hint="Save the image processor beside the model; or use the weights with --arch "
            "transformers:TYPE and --input mean=… --input std=…",
        )
    return described(config, _read_json(path, address))


def _timms(name: str, details: Mapping[str, Any], config: Mapping[str, Any]) -> Described:
    channels, height, width = details.get("input_size", (3, 224, 224))
    return Described(
        ArchitectureSpec(name=f"timm:{name}", arguments=config.get("model_args") or {}),
        int(config.get("num_classes", details.get("num_classes", 1000))),
        InputSpec(
            channels=channels,
            size=(height, width),
            mean=details.get("mean"),
            std=details.get("std"),
        ),
        _preprocessing(details, height, width),
    )


def _preprocessing(details: Mapping[str, Any], height: int, width: int) -> PreprocessingSpec:
    """timm's transform for evaluation: the shorter side to ``side / crop_pct``, then a crop."""
    share = float(details.get("crop_pct") or 0.875)
    mode = details.get("crop_mode") or "center"
    if height != width or mode not in ("center", "squash") or not 0 < share <= 1:
        raise ValueError(f"a preprocessing unknown here: {height}x{width}, {mode} {share}")
    side = math.floor(height / share)
    return PreprocessingSpec(
        resize=side if mode == "center" else None,
        size=None if mode == "center" else (side, side),
        crop=height,
        interpolation=details.get("interpolation") or "bicubic",
    )


# Classes, and what its threat models mean by its documentation: the radius differs by data set.
_LEADERBOARDS: Final = {
    "cifar10/Linf": (10, "Linf-8/255"),
    "cifar10/L2": (10, "L2-0.5"),
    "cifar100/Linf": (100, "Linf-8/255"),
    "imagenet/Linf": (1000, "Linf-4/255"),
}


def load_from_robustbench(address: str) -> RobenchModel:
    """``cifar10/Linf/Wang2023Better_WRN-28-10`` → the wrapped model.

    RobustBench's package downloads it into ``robustbench`` in robench's cache folder and builds it; its networks normalise for
    themselves and take inputs in [0, 1].

    Raises:
        UsageError: the address has another form, or an unknown data set or threat model.
        MissingDependencyError: the package is not installed.
        CheckpointError: it cannot load the model.
    """
    board, _, name = address.rpartition("/")
    dataset, _, threat = board.partition("/")
    if not (name and threat) or "/" in threat:
        raise UsageError(
            f"{address!r} is not a RobustBench address",
            hint="Write it as robustbench:cifar10/Linf/NAME",
        )
    if board not in _LEADERBOARDS:
        close = near_misses(board, list(_LEADERBOARDS)) or sorted(_LEADERBOARDS)
        raise UsageError(f"RobustBench has no {board}", hint=f"Use {' or '.join(close)}")
    num_classes, radius = _LEADERBOARDS[board]
    try:
        # Optional package, needed for this source only.
        from robustbench.utils import load_model
    except ImportError as error:
        raise MissingDependencyError(
            "robustbench is not installed",
            where=f"robustbench:{address}",
            hint="pip install git+https://github.com/RobustBench/robustbench.git",
        ) from error
    try:
        module: nn.Module = load_model(
            model_name=name,
            # Its own default is a folder in the working folder, whose files it takes as they are.
            model_dir=str(cache_folder() / "robustbench"),
            dataset=dataset,
            threat_model=threat,
        )
    except Exception as error:  # Unknown names and failed downloads raise whatever comes.
        raise CheckpointError(
            f"cannot be loaded: {type(error).__name__}: {one_line(error)}",
            where=f"robustbench:{address}",
        ) from error
    preprocessing, remarks = None, list[Flag]()
    if dataset == "imagenet":  # the others have one size
        preprocessing = _robustbench_preprocessing(dataset, threat, name)
        if preprocessing is None:
            evidence = (
                f"how RobustBench prepares images for {name} could not be found out: they "
                "were prepared as the data set does it"
            )
            remarks = [Flag(name="preprocessing_unknown", severity="warning", evidence=evidence)]
    return wrap_module(
        module,
        num_classes=num_classes,
        name=name,
        dataset=dataset,
        threat_model=radius,
        preprocessing=preprocessing,
        remarks=remarks,
        share=True,
    )


def _robustbench_preprocessing(dataset: str, threat: str, name: str) -> PreprocessingSpec | None:
    """What RobustBench does to images for this model; None where it does not say, or it is odd."""
    try:
        # Of the optional package, and not in all of its versions.
        from robustbench.data import get_preprocessing
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

        transform = get_preprocessing(BenchmarkDataset(dataset), ThreatModel(threat), name, None)
        return preprocessing_of(transform)
    except Exception:  # Whatever another version raises means the same.
        return None


def preprocessing_of(transform: Any) -> PreprocessingSpec | None:
    """torchvision's ``Compose`` of ``Resize``, ``CenterCrop`` and conversions, as a card says it.

    Returns:
        None for any other transform.
    """
    # Takes a second to import, and only such models need it.
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize, ToTensor

    fields: dict[str, Any] = {}
    for step in transform.transforms if isinstance(transform, Compose) else [transform]:
        if isinstance(step, Resize) and not fields:
            whole = isinstance(step.size, int) or len(step.size) == 1
            size = step.size if isinstance(step.size, int) else step.size[0]
            fields |= {"resize": size} if whole else {"size": tuple(step.size)}
            fields["interpolation"] = step.interpolation.value
        elif isinstance(step, CenterCrop) and "crop" not in fields:
            height, width = step.size if not isinstance(step.size, int) else (step.size,) * 2
            if height != width:
                return None
            fields["crop"] = height
        elif not isinstance(step, (ToTensor, PILToTensor)):
            return None
    return PreprocessingSpec(**fields)
