"""Attacks: state machines that propose, what they are called, and the suites that run them."""

from robench.attacks.catalogue import ADAPTERS, ATTACKS, build_attack

__all__ = ["ADAPTERS", "ATTACKS", "build_attack"]
