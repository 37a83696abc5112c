"""Seeds that depend on names alone, so that what is drawn is the same on every process and in every order."""

from __future__ import annotations

import hashlib

import torch


def seed_of(text: str) -> int:
    """An int in [0, 2^56) that depends on all of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def generator_of(text: str) -> torch.Generator:
    """A generator of its own on the CPU; torch's global ones stay as they are."""
    return torch.Generator().manual_seed(seed_of(text))
