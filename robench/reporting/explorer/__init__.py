"""What the page explores: models, verdicts sample by sample, and pictures, as plain data."""
