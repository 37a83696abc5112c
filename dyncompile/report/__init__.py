"""Saying what was done to a model: one `Explanation`, rendered as text, for a terminal, or as data."""

from dyncompile.report.explanation import Explanation, explain
from dyncompile.report.text import explain_model, to_text

__all__ = ["Explanation", "explain", "explain_model", "to_text"]
