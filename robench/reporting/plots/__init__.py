"""Figures, one file each, as PNG and SVG. Importing this loads matplotlib, nothing else does."""

from robench.reporting.plots.accuracy_by_attack import accuracy_by_attack
from robench.reporting.plots.confusion import confusion, confusion_under_attack
from robench.reporting.plots.differences import difference_plot
from robench.reporting.plots.distributions import attention_distributions, feature_distances
from robench.reporting.plots.model_scatter import clean_against_robust, robust_against_metric
from robench.reporting.plots.render import group_slug, render_plots, safe_name
from robench.reporting.plots.samples import attention_overlays, resisted_by_one, sample_panel
from robench.reporting.plots.security_curves import security_curves
from robench.reporting.plots.style import save

__all__ = [
    "accuracy_by_attack",
    "attention_distributions",
    "attention_overlays",
    "clean_against_robust",
    "confusion",
    "confusion_under_attack",
    "difference_plot",
    "feature_distances",
    "group_slug",
    "render_plots",
    "resisted_by_one",
    "robust_against_metric",
    "safe_name",
    "sample_panel",
    "save",
    "security_curves",
]
