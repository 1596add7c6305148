"""One recipe a file, with its paper; ``robench.defenses.catalogue`` names them."""
