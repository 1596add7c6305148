from __future__ import annotations

import hashlib
import http.client
import io
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch

from robench.errors import CheckpointError, HashMismatchError, MissingDependencyError, StoreError
from robench.models import load_model, weights_files
from robench.models.architectures.resnet import DigitsResNet
from robench.models.checkpoints import checkpoint_sha256
from robench.models.weights_files import fetch_weights, locate_weights
from robench.records import ModelCard, WeightsSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path))


URL = "https://example.org/files/a%20b.pt?download=1"
NAME = f"a_b-{hashlib.sha256(b'a b').hexdigest()[:8]}.pt"
"""Its ending says how it is read."""


class Answer(io.BytesIO):
    def __init__(self, body: bytes, length: int | None = None, kind: str = "") -> None:
        super().__init__(body)
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = str(length)
        self.headers["Content-Type"] = kind or "application/octet-stream"


def serving(answer: Any, seen: list[str] | None = None) -> Any:
    def open_url(url: str) -> Any:
        if seen is not None:
            seen.append(url)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return open_url


def fetch(url: str, sha256: str, open_url: Any) -> Path:
    """``fetch_weights`` while ``open_url`` answers in the web's place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request.OpenerDirector, "open", lambda _, url, timeout: open_url(url))
        return fetch_weights(url, sha256)


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    seen: list[str] = []
    opener = serving(Answer(b"weights", 7), seen)
    path = fetch(URL, sha(b"weights"), opener)
    assert path.read_bytes() == b"weights"
    assert path.name == NAME
    assert fetch(URL, sha(b"weights"), opener) == path
    assert seen == [URL]


@pytest.mark.parametrize(
    "answer, error, words",
    [
        (Answer(b"other"), HashMismatchError, "the server sent a file with sha256"),
        (Answer(b"weights", kind="text/html; charset=utf-8"), CheckpointError, "a web page"),
        (Answer(b"weigh", 7), CheckpointError, "broke off after 5 of 7 bytes"),
        (Answer(b"w" * 101), CheckpointError, "larger than 100 bytes"),
        (Answer(b"weights", 101), CheckpointError, "larger than 100 bytes"),
        (urllib.error.URLError("no route"), CheckpointError, "cannot be fetched.*no route"),
        (TimeoutError("timed out"), CheckpointError, "cannot be fetched: timed out"),
        (http.client.IncompleteRead(b"w", 6), CheckpointError, "cannot be fetched"),
    ],
)
def test_bad_answers_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr(weights_files, "MAX_BYTES", 100)
    with pytest.raises(error, match=words):
        fetch(URL, sha(b"weights"), serving(answer))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(Answer):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(URL, sha(b""), serving(Interrupted(b"")))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("url", ["http://example.org/a", "file:///etc/passwd", "ftp://e.org/a"])
def test_only_https(tmp_path: Path, url: str) -> None:
    with pytest.raises(CheckpointError, match="over https only"):
        fetch(url, sha(b""), serving(Answer(b"")))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("https://[", "is no address"),
        ("package:__main__/x", "not installed"),
        ("package:torch/\0", "leads out of the package"),
        ("package:torch/../../x", "leads out of the package"),
        ("~nobody-of-this-name/x", "no such file"),
        ("a" * 5000, "no such file"),
        ("a\0b", r"a\\x00b: there is no such file"),
        ("..", "no such file"),
        ("/dev/zero", "no such file"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, path: str, says: str) -> None:
    """``/dev/zero`` would be read for ever."""
    with pytest.raises((CheckpointError, MissingDependencyError), match=says) as raised:
        locate_weights(WeightsSpec(path=path, sha256="ab" * 32), tmp_path)
    assert str(raised.value).isprintable()


def test_devices_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text('{"weight_map": {"x": "shard"}}')
    (tmp_path / "shard").symlink_to("/dev/zero")
    for path in (Path("/dev/zero"), tmp_path / "a.index.json"):
        with pytest.raises(CheckpointError, match="a device"):
            checkpoint_sha256(path)


def test_redirects_stay_encrypted() -> None:
    request = urllib.request.Request("https://example.org/a")
    handler = weights_files._HttpsOnly()
    with pytest.raises(CheckpointError, match="over https only"):
        handler.redirect_request(request, None, 302, "", Message(), "http://example.org/b")
    followed = handler.redirect_request(
        request, None, 302, "", Message(), "https://mirror.example.org/b"
    )
    assert followed is not None
    assert followed.full_url == "https://mirror.example.org/b"


@pytest.mark.parametrize(
    "url, name",
    [
        ("https://e.org/..%2F..%2Fevil", "evil"),
        ("https://e.org/", "weights"),
        ("https://e.org/..", "weights"),
        ("https://e.org/a/.hidden", "hidden"),
    ],
)
def test_file_names_stay_in_the_cache(tmp_path: Path, url: str, name: str) -> None:
    path = fetch(url, sha(b"x"), serving(Answer(b"x")))
    assert path == tmp_path / "weights" / sha(b"x") / name


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        fetch(URL, sha(b""), serving(Answer(b"")))


def test_a_card_may_name_an_address(tmp_path: Path) -> None:
    network = DigitsResNet(width=2).eval()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    body = buffer.getvalue()
    home = tmp_path / "weights" / sha(body)
    home.mkdir(parents=True)
    (home / NAME).write_bytes(body)
    card = ModelCard.model_validate(
        {
            "name": "far",
            "dataset": "digits",
            "num_classes": 10,
            "threat_model": "Linf-0.2",
            "defense": "standard",
            "architecture": {"name": "digits_resnet", "arguments": {"width": 2}},
            "input": {"channels": 1},
            "weights": {"path": URL, "sha256": sha(body)},
        }
    )
    inputs = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(load_model(card)(inputs), network(inputs))
    # What lies in the cache is hashed again: it may have been changed since.
    (home / NAME).write_bytes(body + b"\0")
    with pytest.raises(HashMismatchError):
        load_model(card)
