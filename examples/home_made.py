"""A network of one's own, from its `.pth` to a dynamic checkpoint and back to a plain state dict.

``python examples/home_made.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.foreign import load_state, read_state_dict


class Mixer(nn.Module):
    """Tokens [B, 16, 24] -> classes [B, 4]: nothing that a library would know."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 96), nn.Linear(96, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch, mean over tokens, head."""
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def main() -> None:
    """Print that nothing was lost."""
    tokens = torch.randn(2, 16, 24)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trained.pth"
        trained = {f"module.net.{name}": value for name, value in Mixer().state_dict().items()}
        torch.save({"state_dict": trained, "epoch": 7}, file)  # as a wrapper of DDP and Lightning leaves it
        model = Mixer().eval()
        load_state(model, read_state_dict(file))
        dyn = dc.dynamize(model, method="dsnet(gate=False)", example_inputs=tokens).eval()
        print(dc.verify(dyn, model, tokens))
        loaded = dc.load(dc.save(dyn, Path(folder) / "dynamic"))  # without the class above
    reduced, state = dc.reduce_to_source(loaded), model.state_dict()
    print("reduced bit for bit:", all(torch.equal(reduced[name], value) for name, value in state.items()))


if __name__ == "__main__":
    main()
