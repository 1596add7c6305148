"""Evaluation: from a plan to records. The engine searches, adjudication decides, the runner stores."""
