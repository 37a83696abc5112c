"""Known architectures, deployed: any routes in any order of the batch give what dense execution gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dyncompile as dc
from dyncompile import zoo
from dyncompile.errors import NoSiteError
from tests.support import leaves, relative

pytestmark = pytest.mark.zoo

_BERT = "num_hidden_layers=2&hidden_size=96&num_attention_heads=3&intermediate_size=192"
MODELS = (
    "torchvision:resnet18",
    "torchvision:densenet121",
    "torchvision:squeezenet1_1",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:regnet_y_400mf",
    "torchvision:googlenet",
    "torchvision:vgg11_bn",
    "timm:mobilenetv2_100",
    "timm:convnext_atto",
    "timm:ghostnet_100",
    "timm:vit_tiny_patch16_224?depth=3",
    "timm:deit_tiny_distilled_patch16_224?depth=3",
    "timm:swin_tiny_patch4_window7_224?embed_dim=24",
    "timm:levit_128s",
    "timm:mixer_s32_224",
    f"hf:BertForSequenceClassification?{_BERT}",
    f"hf:ViTForImageClassification?{_BERT}",
    "hf:GPT2ForSequenceClassification?n_layer=2&n_embd=96&n_head=3&pad_token_id=0",
)
METHODS = ("dsnet(per='block')", "lcnet", "dsnet; lcnet(channels=False); exits")
WITHOUT_BRANCHES = ("densenet121", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "vgg11_bn")
SEEDS = range(3)
MOST_ROWS = 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS, ids=lambda name: name.partition("?")[0])
@torch.no_grad()
def test_any_routes_in_any_order_equal_dense_execution(name: str, method: str) -> None:
    source = zoo.load(name)
    zoo.randomize(source.model, 0, inputs=(source.args, source.kwargs))
    example = source.kwargs or source.args
    steps = method.split("; ")
    if name.partition(":")[2] in WITHOUT_BRANCHES and len(steps) > 1:
        with pytest.raises(NoSiteError, match="no residual branch"):
            dc.dynamize(source.model.eval(), steps, example)
        steps = [step for step in steps if not step.startswith("lcnet")]
    dyn = dc.dynamize(source.model.eval(), steps, example).eval()
    deployed = [dc.deploy(dyn, memory=memory) for memory in ("shared", "packed")]
    for seed in SEEDS:
        random = torch.Generator().manual_seed(seed)
        rows = int(torch.randint(1, MOST_ROWS + 1, (1,), generator=random))
        args = [batch(x, rows, random) for x in source.args]
        kwargs = {key: batch(x, rows, random) for key, x in source.kwargs.items()}
        route = dyn.run(*args, policy=dc.Sampled(seed, per_sample=True), **kwargs)[1]
        expected = dyn.record(*args, policy=dc.Forced(route), execution="dense", **kwargs).output
        order = torch.randperm(rows, generator=random)
        moved = {key: x[order] if isinstance(x, Tensor) else x for key, x in kwargs.items()}
        policy = dc.Forced({key: decided[order] for key, decided in route.items()})
        for fast in deployed:
            found = fast.run(*(x[order] for x in args), policy=policy, **moved)[0]
            assert relative([x[order] for x in leaves(expected)], leaves(found)) < 1e-4


def batch(x: Any, rows: int, random: torch.Generator) -> Any:
    """Numbers drawn anew; ids and masks of the example in another order, row by row; settings as they are."""
    if not isinstance(x, Tensor):
        return x
    if x.is_floating_point():
        return torch.randn(rows, *x.shape[1:], generator=random)
    return torch.stack([x[0][torch.randperm(len(x[0]), generator=random)] for _ in range(rows)])
