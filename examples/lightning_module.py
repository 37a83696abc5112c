"""A Lightning module from a checkpoint of its static source: ``python examples/lightning_module.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dyncompile as dc
from dyncompile.foreign import load_state, read_state_dict
from dyncompile.zoo.third_party import third_party

lightning: Any = third_party("lightning")  # which imports torchvision; this helps it beside a CPU-only torch


class Classifier(lightning.LightningModule):
    """Trains a network; a dynamic one at another random width in every second step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        if isinstance(self.net, dc.DynamicModel):
            self.net.policy = dc.Full() if step % 2 else dc.Sampled(step)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main(epochs: int = 6) -> float:
    """Train statically, read the checkpoint, go on dynamically; accuracy at the smallest width."""
    lightning.seed_everything(0, verbose=False)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    x = torch.randn(256, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    data = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        plain |= {"accelerator": "cpu", "default_root_dir": folder, "enable_checkpointing": False}
        trainer, file = lightning.Trainer(max_epochs=epochs, **plain), Path(folder) / "static.ckpt"
        trainer.fit(Classifier(network), data)
        trainer.save_checkpoint(file)
        load_state(network, read_state_dict(file))  # as data: nothing in the file runs
        dyn = dc.dynamize(network, "dsnet(gate=False, divisor=1)", x[:4]).train()
        lightning.Trainer(max_epochs=epochs, **plain).fit(Classifier(dyn), data)
    with torch.no_grad():
        found = dyn.eval().run(x, policy=dc.Smallest())[0].argmax(1) == y
    print(f"{float(found.float().mean()):.1%} right at the smallest width")
    return float(found.float().mean())


if __name__ == "__main__":
    main()
