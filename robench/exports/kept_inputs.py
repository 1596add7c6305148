"""Adversarial inputs, which some records keep. This format loads torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robench.exports.material import Material
from robench.inspection.png_export import export_pngs


def write_pngs(material: Material, folder: Path) -> list[Path]:
    """The inputs in 8 bits with an index, as
    :func:`robench.inspection.png_export.export_pngs` writes them."""
    # A data set is read by the name that the user gave; one that a record gives has to be known.
    request = replace(material.request, dataset=material.wanted.dataset)
    return export_pngs(material.store, material.records, folder, request)
