"""Limbeck: a laboratory for distilling language models.

Plan, teach, distil, measure and study, with one vocabulary (README, "Words").
"""

__version__ = "0.1.0"
