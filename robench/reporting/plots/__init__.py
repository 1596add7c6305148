"""Figures, a file for each kind, as PNG and SVG. Importing them loads matplotlib."""
