"""Attacks of other packages behind robench's contract: they propose, robench decides."""
