"""Recipes by name, listed without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robench.registry import Registry

if TYPE_CHECKING:
    from robench.defenses.recipe import Recipe

RECIPES: Registry[type[Recipe]] = Registry("recipe", "robench.recipes")

for _name, _target, _summary in (
    ("standard", "cross_entropy:Standard", "cross-entropy on clean inputs: no defense"),
    ("pgd-at", "cross_entropy:PgdAt", "cross-entropy on PGD inputs (Madry et al. 2018)"),
    ("trades", "divergence:Trades", "clean cross-entropy + 6 KL (Zhang et al. 2019)"),
    ("mart", "divergence:Mart", "boosted CE + KL weighted by misclassification (Wang et al. 2020)"),
    ("ibp", "interval:Ibp", "cross-entropy of interval bounds: verifiable (Gowal et al. 2019)"),
    ("aerp", "aerp:Aerp", "attention rectification and preservation (Wu et al. 2022)"),
    ("agkd-bml", "agkd_bml:AgkdBml", "attention distillation + metric learning (Wang et al. 2021)"),
    ("ancra", "ancra:Ancra", "negative contrast + reverse attention (Zhou et al. 2023)"),
):
    RECIPES.add(_name, f"robench.defenses.recipes.{_target}", _summary)
