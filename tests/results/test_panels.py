from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from panel_factory import make_panel
from record_factory import make_record, make_samples

from robench.errors import StoreError
from robench.results import SamplePanel, Store


def test_panel_survives_the_store(tmp_path: Path) -> None:
    panel = make_panel(3, channels=3)
    samples = make_samples("BSB")
    record = make_record(samples)
    store = Store(tmp_path)
    store.write(record, samples, arrays=panel.to_arrays())
    read = SamplePanel.from_arrays(store.read_arrays(record.key))
    assert read is not None
    assert read.sample_ids == panel.sample_ids
    for name in ("clean", "adversarial", "clean_maps", "adv_maps", "labels"):
        np.testing.assert_array_equal(getattr(read, name), getattr(panel, name))


def test_no_panel_is_none_and_half_a_panel_is_refused() -> None:
    assert SamplePanel.from_arrays({"adversarial": np.zeros(3)}) is None
    arrays = make_panel(2).to_arrays()
    del arrays["panel_adv_maps"]
    with pytest.raises(StoreError, match="panel_adv_maps"):
        SamplePanel.from_arrays(arrays)


@pytest.mark.parametrize(
    "name, shape", [("clean", (2, 8, 8, 2)), ("clean", (3, 8, 8, 1)), ("labels", (2, 1))]
)
def test_wrong_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    arrays = {**make_panel(2).to_arrays(), f"panel_{name}": np.zeros(shape)}
    with pytest.raises(StoreError, match="panel"):
        SamplePanel.from_arrays(arrays)
