"""Every test starts from the same seed on one torch thread; `gpu` needs a device, `browser` a Chromium."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import settings

# One thread: xdist already fills the cores, and sums in a fixed order make runs repeat bit for bit.
torch.set_num_threads(1)

# Eager nn.MultiheadAttention has a fused path in evaluation, about 3e-5 apart from any captured graph.
torch.backends.mha.set_fastpath_enabled(False)

# Derandomized, so that a failure repeats; no deadline, because compiling graphs has no steady pace.
settings.register_profile("dyncompile", deadline=None, derandomize=True)
settings.load_profile("dyncompile")

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("browser") is not None and not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
