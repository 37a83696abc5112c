"""Contenders of the coverage benchmark, each run in an environment of its own (``make peers``)."""
