"""The doctor: what is wrong or odd with a model, in seconds, before hours are spent."""

from robench.doctor.catalogue import CHECKS, Check
from robench.doctor.examination import examine
from robench.doctor.subject import Finding, Severity

__all__ = ["CHECKS", "Check", "Finding", "Severity", "examine"]
