"""What is put into the page for its script: verdicts, and pictures that lose no more than they say."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_records import keep_pictures, page_inputs, page_records
from PIL import Image

from robench.records import Outcome
from robench.reporting.explorer.contents import OUTCOMES, explorer_contents, result_id
from robench.reporting.explorer.packed import packed, size_of
from robench.reporting.explorer.pictures import explorer_pictures
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import ModelResult, collect
from robench.reporting.page import build_page
from robench.results import Store
from robench.results.clean_samples import CleanSamples, keep_clean_samples, read_clean_samples


def unpacked(content: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(content["data"]), f"<{content['type']}")


def images_of(content: dict[str, Any]) -> np.ndarray:
    """The images (k, h, w, C) of a packed set."""
    height, width, channels = content["shape"]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(content["sprite"].split(",")[1]))))
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    cut = pixels.reshape(rows, height, columns, width, channels).swapaxes(1, 2)
    return cut.reshape(-1, height, width, channels)[: len(unpacked(content["at"]))]


@pytest.mark.parametrize(
    "values, kind",
    [
        ([0, 255], "u1"),
        ([-1, 127], "i1"),
        ([-1, 128], "i2"),
        ([70_000], "i4"),
        ([], "f2"),
        ([0.5, -2.0, np.nan], "f2"),
        ([70_000.5], "f4"),
        ([1e-6], "f4"),
    ],
)
def test_numbers_take_the_smallest_type_that_holds_them(values: list[float], kind: str) -> None:
    content = packed(values)
    assert content["type"] == kind
    assert unpacked(content) == pytest.approx(values, nan_ok=True)


def test_what_32_bits_do_not_hold_is_refused() -> None:
    with pytest.raises(OverflowError, match="do not fit"):
        packed([2**31])


def test_verdicts_and_predictions_are_the_tables() -> None:
    results = collect(page_records(["one", "two"], ("0.1",)))
    contents = explorer_contents(results)
    assert json.dumps(contents, allow_nan=False)
    for result, row in zip(results, contents["rows"], strict=True):
        assert row["id"] == result_id(result)
        for attack in row["attacks"]:
            name = attack["name"]
            for number, outcome in enumerate(OUTCOMES):
                assert np.array_equal(
                    unpacked(attack["outcome"]) == number, result.outcome_is(name, outcome)
                )
            margins = unpacked(attack["margin"]).astype(float)
            assert np.array_equal(margins, result.column(name, "adv_margin"), equal_nan=True)
            broken = result.outcome_is(name, Outcome.BROKEN)
            stages = np.array([*attack["stage_names"], ""])[unpacked(attack["stage"])]
            assert stages.tolist() == ["toy" if b else "" for b in broken]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[ModelResult], Any]:
    store, inputs = Store(tmp_path_factory.mktemp("kept")), page_inputs(channels=3)
    records = keep_pictures(store, page_records(["one", "two"], ("0.1",)), inputs)
    return store, collect(records), inputs


def test_pictures_are_the_inputs_to_a_fourteenth_of_the_radius(kept: Any) -> None:
    store, results, inputs = kept
    found = explorer_pictures(results, store)
    (clean,) = found["clean"].values()
    assert np.array_equal(images_of(clean), np.rint(255 * np.moveaxis(inputs, 1, -1)))
    for result in results:
        sets = found["attacked"][result_id(result)]
        assert set(sets) == {"pgd-20", "autoattack"}
        whole, few = sets["pgd-20"], sets["autoattack"]
        judged = np.flatnonzero(result.clean_correct)
        assert unpacked(whole["at"]).tolist() == judged.tolist()
        assert unpacked(few["at"]).tolist() == unpacked(few["maps"]["at"]).tolist() == [0, 1, 2, 3]
        steps = images_of(whole).astype(float) / 7 - 1
        changes = steps * unpacked(whole["scale"])[:, None, None, None]
        stored = store.adversarial_rows(result.attacks["pgd-20"].record.key)[judged]
        off = np.moveaxis(stored - inputs[judged], 1, -1) - changes
        assert np.abs(off).max() < 0.1 / 14 + 1e-3


def test_pictures_fit_into_what_they_may_take(kept: Any) -> None:
    store, results, _ = kept
    whole = size_of(explorer_pictures(results, store))
    for most in (whole, whole // 2, 2_000, 10):
        found = explorer_pictures(results, store, most=most)
        assert size_of(found) <= most
        for clean in found["clean"].values():
            places = unpacked(clean["at"])
            assert places.tolist() == list(range(len(places)))
    assert found == {"clean": {}, "attacked": {}}


def test_large_images_are_thinned_alike(tmp_path: Path) -> None:
    inputs = page_inputs(2, 100)
    samples = CleanSamples.of(["a", "b"], inputs)
    assert samples.stride == 2
    assert samples.images.shape == (2, 50, 50, 1)
    assert samples.images[1, 3, 4, 0] == round(255 * float(inputs[1, 0, 6, 8]))
    keep_clean_samples(Store(tmp_path), "0" * 64, samples)
    again = read_clean_samples(Store(tmp_path), "0" * 64)
    assert again is not None
    assert (again.sample_ids, again.stride) == (("a", "b"), 2)
    assert np.array_equal(again.images, samples.images)


@pytest.mark.parametrize("content", [b"", b"no npz", "other"])
def test_damaged_clean_samples_are_left_out_and_named(
    tmp_path: Path, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    records = keep_pictures(store, page_records(["one"], ("0.1",)), page_inputs())
    (file,) = (tmp_path / "samples").iterdir()
    if content == "other":
        np.savez(file, images=np.zeros(3))
    else:
        file.write_bytes(content)
    found = explorer_pictures(collect(records), store)
    assert "no pictures of clean samples" in caplog.text
    (clean,) = found["clean"].values()
    assert unpacked(clean["at"]).tolist() == [0, 1, 2, 3]  # the panel's


def test_a_card_is_shown_with_the_very_model_alone() -> None:
    from robench.models.zoo import zoo_cards

    card = next(
        card
        for card in zoo_cards().values()
        if card and card.name == "ancra" and card.dataset == "digits"
    )
    results = collect(page_records(["one"], ("0.1",)))
    (row,) = explorer_contents(results, cards=[card])["rows"]
    assert row["card"] == []
    summary = results[0].model.model_copy(update={"fingerprint": card.fingerprint})
    (stored, *_) = results[0].attacks.values()
    own = type(stored)(stored.record.model_copy(update={"model": summary}), stored.arrow)
    (row,) = explorer_contents(collect([own]), cards=[card])["rows"]
    said = dict(row["card"][0][1])
    assert said["link"] == card.provenance.link
    assert [heading for heading, _ in row["card"]][:3] == ["provenance", "recipe", "validation"]


def test_the_same_records_make_the_same_page(kept: Any) -> None:
    store, results, _ = kept
    records = [stored for result in results for stored in result.attacks.values()]
    pages = {
        build_page(
            build_leaderboard(records),
            results=results,
            pictures=explorer_pictures(results, store),
        )
        for _ in range(2)
    }
    assert len(pages) == 1
