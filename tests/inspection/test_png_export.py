"""Names and pixels of exported pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robench.errors import UsageError
from robench.inspection.png_export import _mode, picture_names, png_bytes


@settings(deadline=None)
@given(st.lists(st.text(max_size=150), unique=True, max_size=6))
def test_every_picture_has_a_name_of_its_own_inside_the_folder(ids: list[str]) -> None:
    names = picture_names(ids)
    assert list(names) == ids
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for name in names.values():
        assert Path("folder", name).resolve().parent == Path("folder").resolve()
        assert len(name) < 200
        assert not name.startswith(".")


def test_ids_that_one_name_would_stand_for_are_kept_apart() -> None:
    names = picture_names(["a/b", "a:b", "A?b", "c"])
    assert names["c"] == "c.png"
    assert len(set(names.values())) == 4
    assert all(name.lower().startswith("a_b-") for key, name in names.items() if key != "c")
    assert picture_names(["A?b", "a:b", "a/b"])["a/b"] == names["a/b"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_the_very_levels(channels: int) -> None:
    levels = torch.arange(channels * 6, dtype=torch.uint8).reshape(channels, 2, 3) * 13
    content = png_bytes(levels.float() / 255, _mode("m", channels))
    with Image.open(io.BytesIO(content)) as image:
        found = np.array(image)
    assert np.array_equal(found.reshape(2, 3, channels), levels.movedim(0, -1).numpy())


def test_other_channels_are_no_picture() -> None:
    with pytest.raises(UsageError, match="4 channels are no pictures"):
        _mode("m", 4)
