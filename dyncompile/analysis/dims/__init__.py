"""Dimension types: which dimensions of a network move together, inferred by unification."""
