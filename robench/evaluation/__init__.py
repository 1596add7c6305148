"""Evaluation: from a plan to records. A search proposes, adjudication decides, the runner stores."""
