"""Stored results in the forms that papers, trackers, model hubs and CI read.

A format is one function and one line in :mod:`robench.exports.catalogue`; what it is made of is a
:class:`~robench.exports.material.Material`. Nothing here knows a model: all is read from records.
"""

from robench.exports.catalogue import FORMATS, Format
from robench.exports.material import Choices, Gap, Material

__all__ = ["FORMATS", "Choices", "Format", "Gap", "Material"]
