"""Models that look more robust than they are, each with a hand-made attack that knows why.

They are what diagnoses and countermeasures are tried on: each names the diagnoses that say what is
wrong, and its yardstick gives an upper bound of the accuracy that is left. Beside them stand
controls of other kinds than the zoo's, of which nothing is wrong.
"""

from mask_gallery import after_network, before_network, controls, inside_network, of_state
from mask_gallery.ground import Ground, PlantedMask, Yardstick, ground_of
from mask_gallery.hand_made import answers, withstands

__all__ = ["GALLERY", "Ground", "PlantedMask", "Yardstick", "answers", "ground_of", "withstands"]

GALLERY: dict[str, PlantedMask] = {
    mask.name: mask
    for room in (before_network, inside_network, after_network, of_state, controls)
    for mask in room.MASKS
}
"""All of them, by name."""
