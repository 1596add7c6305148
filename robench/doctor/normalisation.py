"""Whether a mean and a deviation are in the units of the range that they are taken of."""

from collections.abc import Iterator

from robench.doctor.subject import Finding, Subject

_DARKEST = 1 / 64
"""Of the range: no data set is darker on average, other than one of mean 0 that is not centred."""
_NARROWEST = 1 / 512
"""Of the range: less than a step of 8 bits"""


def normalisation(subject: Subject) -> Iterator[Finding]:
    """A mean outside of the range, next to its lower end, or a deviation that is wider than it or far
    too narrow: those of pixels that count otherwise."""
    spec = subject.model.input_spec
    span = spec.high - spec.low
    means = [(value - spec.low) / span for value in spec.mean or ()]
    stds = [value / span for value in spec.std or ()]
    coarse = any(not 0 <= value <= 1 for value in means) or any(value > 1 for value in stds)
    fine = (any(means) and max(means) < _DARKEST) or (bool(stds) and max(stds) < _NARROWEST)
    if not (coarse or fine):
        return
    given = {"mean": spec.mean, "std": spec.std}
    said = " and ".join(
        f"{name} {', '.join(f'{v:g}' for v in values)}"
        for name, values in given.items()
        if values is not None
    )
    yield Finding(
        name="normalisation_units",
        severity="warning",
        evidence=f"{said} cannot be those of pixels from {spec.low:g} to {spec.high:g}, which they are "
        "taken of",
        mend="Write range, mean and std in one unit: mean and std in [0, 1] as they are, or, for "
        "pixels that count to 255, high=255 beside them",
    )
