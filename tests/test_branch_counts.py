"""How many layers LC-Net finds in known architectures: as many as they have residual branches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import dyncompile as dc
from dyncompile import zoo
from dyncompile.verify import count_macs
from tests.support import Subject, leaves, relative

SMALL = "hidden_size=48&num_attention_heads=4&intermediate_size=64&vocab_size=100"


@dataclass(frozen=True)
class Known:
    """An architecture and its number of residual branches; what the number does not depend on is small.

    Attributes:
        spec: the model, as the zoo loads it.
        size: sides of its images; 0 for models that read tokens.
        branches: how many residual branches it has.
    """

    spec: str
    size: int
    branches: int


COMMON = (
    Known("timm:resnet18", 64, 8),  # four stages of 2 basic blocks
    # 17 blocks. Those with a shortcut have stride 1 and as many channels out as in, which are all but the
    # first of each of the seven stages of 1, 2, 3, 4, 3, 3, 1 blocks: 17 - 7.
    Known("timm:mobilenetv2_100", 64, 10),
    Known("timm:vit_base_patch16_224?img_size=32&embed_dim=48&num_heads=3", 32, 24),  # 12 blocks, two each
    # 12 blocks: attention, feed-forward.
    Known("hf:GPT2LMHeadModel?n_embd=48&n_head=4&vocab_size=100&bos_token_id=0&eos_token_id=0", 0, 24),
)
MORE = (
    Known("timm:resnet50", 64, 16),  # bottlenecks: 3, 4, 6, 3
    # 15 blocks. Of stride 1 and equal width: 1 of 16 channels, 1 of 24, 2 of 40, 3 of 80, 1 of 112, 2 of 160.
    Known("timm:mobilenetv3_large_100", 64, 10),
    Known("timm:convnext_tiny", 64, 18),  # 3, 3, 9, 3
    Known("timm:swin_tiny_patch4_window7_224?embed_dim=24", 224, 24),  # 2, 2, 6, 2 blocks, two branches each
    Known(f"hf:BertForSequenceClassification?{SMALL}", 0, 24),  # 12 layers: attention, feed-forward
    Known("torchvision:resnet18", 64, 8),
    Known("torchvision:resnet50", 64, 16),
    Known("torchvision:mobilenet_v2", 64, 10),
    Known("torchvision:mobilenet_v3_large", 64, 10),
    Known("torchvision:convnext_tiny", 64, 18),
    Known("torchvision:vit_b_16?image_size=32", 32, 24),
    Known("torchvision:swin_t", 64, 24),
)


def _name(known: object) -> str:
    return known.spec.partition("?")[0] if isinstance(known, Known) else str(known)


@pytest.mark.parametrize(
    "known", [*COMMON, *(pytest.param(one, marks=pytest.mark.zoo) for one in MORE)], ids=_name
)
def test_every_residual_branch_can_be_skipped(known: Known) -> None:
    source = zoo.load(known.spec)
    inputs = (torch.randn(2, 3, known.size, known.size),) if known.size else source.args
    zoo.randomize(source.model, 0, inputs=(inputs, source.kwargs))
    one = Subject(source.model, inputs, source.kwargs)
    tensors = [value for value in one.flat if isinstance(value, Tensor)]
    dyn = one.dynamic("lcnet(channels=False)")
    assert len(dyn.choices) == known.branches
    with torch.no_grad():
        actual, route = dyn.run(*one.args, policy=dc.Smallest(), **one.kwargs)
        static = dc.specialize(dyn, {name: rows[:1] for name, rows in route.items()})
        assert relative(leaves(static(*tensors)), leaves(actual)) <= 1e-5
    assert all(leaf.isfinite().all() for leaf in leaves(actual))
    smallest = float(dyn.macs(route)[0])
    assert smallest == count_macs(partial(static, *(value[:1] for value in tensors)))
    saved = [dyn.static_macs - float(dyn.macs({**_full(dyn), name: rows})[0]) for name, rows in route.items()]
    assert min(saved) > 0, "a branch costs nothing"
    assert sum(saved) == dyn.static_macs - smallest
    with torch.no_grad():
        mixed, route = dyn.run(*one.args, policy=dc.Sampled(0, per_sample=True), **one.kwargs)
        assert any(len(set(rows.flatten().tolist())) == 2 for rows in route.values())
        for i in range(2):
            args, kwargs = (pytree.tree_map(partial(_row, i), given) for given in (one.args, one.kwargs))
            policy = dc.Forced({name: rows[i : i + 1] for name, rows in route.items()})
            alone = leaves(dyn.run(*args, policy=policy, **kwargs)[0])
            assert relative(alone, [leaf[i : i + 1] for leaf in leaves(mixed)]) <= 1e-4


def _row(i: int, value: object) -> object:
    return value[i : i + 1] if isinstance(value, Tensor) else value


def _full(dyn: dc.DynamicModel) -> dict[str, Tensor]:
    return {name: torch.tensor([choice.full]).expand(2, -1) for name, choice in dyn.choices.items()}
