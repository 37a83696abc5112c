"""Dynamic resolution and BasisNet on known architectures: values, costs counted on the source, refusals."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile import zoo
from dyncompile.verify.compare import count_macs
from dyncompile.zoo.sizes import take_size
from tests.support import leaves, relative, same

pytestmark = pytest.mark.zoo

# -- resolution ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sized:
    """A model, the sizes that it takes of half and three quarters of its own `side`, and why not others."""

    spec: str
    taken: tuple[int, ...] = (112, 168)
    reason: str = ""
    side: int = 224

    def __str__(self) -> str:
        return self.spec.partition("?")[0]


_VIT = "num_hidden_layers=2&hidden_size=96&num_attention_heads=3&intermediate_size=192"
SIZED = (
    Sized("torchvision:resnet50"),
    Sized("timm:mobilenetv2_100"),
    Sized("torchvision:mobilenet_v3_small"),
    Sized("timm:efficientnet_b0"),
    Sized("timm:convnext_atto"),
    Sized("torchvision:regnet_y_400mf"),
    Sized("torchvision:vgg11_bn"),
    Sized("timm:vit_tiny_patch16_224?depth=3", (112,), "divisible"),
    Sized(f"hf:ViTForImageClassification?{_VIT}"),
    Sized("timm:swin_tiny_patch4_window7_224?embed_dim=24"),
    Sized("torchvision:swin_t"),
    Sized("torchvision:vit_b_16?image_size=64", (32, 48), side=64),
)


@pytest.mark.parametrize("one", SIZED, ids=str)
@torch.no_grad()
def test_every_size_is_the_source_on_the_resized_image(one: Sized) -> None:
    source = zoo.load(one.spec)
    zoo.randomize(source.model, 0, inputs=(source.args, source.kwargs))
    net = source.model.eval()
    inputs = source.args or source.kwargs
    dyn = dc.dynamize(net, f"resolution(sizes=({one.side // 2}, {one.side * 3 // 4}))", inputs).eval()
    assert dyn.choices["resolution"].labels == tuple(map(str, (*one.taken, one.side)))
    assert all(one.reason in rejection.reason for rejection in dyn.plans[0].rejections)
    image = next(leaf for leaf in leaves(inputs) if leaf.dim() == 4)
    rows: list[list[Tensor]] = []
    for column, label in enumerate(dyn.choices["resolution"].labels):
        small, own = _resized(image, int(label)), copy.deepcopy(net)
        if small is not image:
            take_size(own, (int(label), int(label)))  # the library's own option, where it has one
        expected = leaves(_called(own, source, small))
        found = leaves(_called(dyn, source, image, policy=dc.Forced(dyn.route(column)))[0])
        assert same(expected, found), label
        counted = count_macs(partial(_called, own, source, small[:1]))
        assert float(dyn.macs(dyn.route(column))[0]) == counted
        rows.append(expected)
    mixed = {"resolution": torch.eye(len(rows))[[0, len(rows) - 1]]}
    together = leaves(_called(dyn, source, image, policy=dc.Forced(mixed))[0])
    for leaf, small, native in zip(together, rows[0], rows[-1], strict=True):
        assert relative(torch.cat((small[:1], native[1:])), leaf) <= 1e-5
    if "resnet50" in one.spec:
        shares = (dyn.macs({"resolution": torch.eye(3)}) / dyn.static_macs).tolist()
        assert shares == pytest.approx([0.264, 0.612, 1], abs=5e-4)  # 0.5625 of the area: maps round up


def test_flattened_maps_are_refused_with_their_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 16, 1), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    with pytest.raises(dc.NoSiteError, match=r"`2` \(Linear\)"):
        dc.dynamize(net, "resolution(sizes=(112, 168))", torch.randn(2, 3, 224, 224))


def _resized(image: Tensor, side: int) -> Tensor:
    if image.shape[-1] == side:
        return image
    return F.interpolate(image, (side, side), mode="bilinear", antialias=True)


def _called(net: Any, source: Any, image: Tensor, **more: Any) -> Any:
    call = net.run if "policy" in more else net
    args = [image if _is_image(leaf) else leaf for leaf in source.args]
    kwargs = {name: image if _is_image(leaf) else leaf for name, leaf in source.kwargs.items()}
    return call(*args, **kwargs, **more)


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


# -- basisnet --------------------------------------------------------------------------------------------

_BERT = "hidden_size=48&num_attention_heads=4&intermediate_size=96&vocab_size=100&num_hidden_layers=3"
MIXED = {
    "timm:mobilenetv2_100": 64,
    "torchvision:mobilenet_v3_small": 64,
    "timm:efficientnet_b0": 64,
    "torchvision:resnet18": 64,
    "timm:vit_tiny_patch16_224?img_size=64&depth=3": 64,
    f"hf:BertForSequenceClassification?{_BERT}": 0,
}


@pytest.mark.parametrize("spec", MIXED, ids=lambda spec: spec.partition("?")[0])
def test_basisnet_keeps_the_source_and_counts_what_it_adds(spec: str) -> None:
    source, side = zoo.load(spec), MIXED[spec]
    inputs: Any = torch.randn(2, 3, side, side) if side else source.kwargs
    args, kwargs = ((inputs,), {}) if side else ((), inputs)
    zoo.randomize(source.model, 0, inputs=(args, kwargs))
    net = source.model.eval()
    dyn = dc.dynamize(net, "basisnet(overhead=4.0)", inputs).eval()
    with torch.no_grad():
        learned, route = dyn.run(*args, policy=dc.Learned(), **kwargs)
        assert len(route["basis"].unique(dim=0)) == 2, "kernels differ by sample"
        assert relative(leaves(net(*args, **kwargs)), leaves(learned)) <= 1e-6
    static = dc.specialize(dyn, {"basis": route["basis"][:1], "basis.exit": torch.zeros(1, 1)})
    own, mixed = net.state_dict(), dyn.plans[0].synthesized
    for name in mixed:
        assert torch.equal(static.get_parameter(name), own[name]), name
    _check_costs(dyn, list(mixed), bool(side))
    with torch.no_grad():
        for name in mixed:
            dyn.get_parameter(f"dyn.bases.{name}").normal_(0, 0.01)
    assert dc.verify(dyn, net, inputs, routes=1).passed
    _check_oracle(dyn, copy.deepcopy(net), list(mixed), args, kwargs)


def _check_costs(dyn: dc.DynamicModel, mixed: list[str], is_image: bool) -> None:
    """Expected MACs are those of the preview, and of specialist and synthesis for who goes on."""
    shapes = dict(dyn.named_parameters())
    synthesis = sum(shapes[f"dyn.bases.{name}"].numel() for name in mixed)  # each weight serves one layer
    matrices = {name: p.numel() for name, p in shapes.items() if p.dim() == 2}
    coefficients = sum(n for name, n in matrices.items() if name.startswith("dyn.gates.basis."))
    stop = {**dyn.route({}), "basis.exit": torch.ones(1, 1)}
    preview = sum(n for name, n in matrices.items() if name.startswith("dyn.previews.basis."))
    if is_image:
        preview = int(dyn.macs(stop)[0])
    goes_on = dyn.static_macs + preview + coefficients + synthesis
    left = float(dyn.macs(stop)[0])
    assert float(dyn.spent(stop)[0]) == left
    for p in (0.0, 0.25, 1.0):
        some = {"basis.exit": torch.full((1, 1), p), "basis": torch.rand(1, dyn.choices["basis"].width)}
        assert float(dyn.spent(some)[0]) == pytest.approx((1 - p) * goes_on + p * left)


def _check_oracle(dyn: dc.DynamicModel, net: nn.Module, mixed: list[str], args: Any, kwargs: Any) -> None:
    """The first sample's network, mixed by hand, gives the first sample's output."""
    with torch.no_grad():
        output, route = dyn.run(*args, policy=dc.Learned(), **kwargs)
        found, rows = leaves(output), route["basis"]
        for name, block in zip(mixed, rows[0].unflatten(0, (len(mixed), -1)), strict=True):
            bases = dyn.get_parameter(f"dyn.bases.{name}")
            net.get_parameter(name).add_(torch.einsum("n,n...->...", block, bases))
        expected = leaves(net(*args, **kwargs))
    for one, other in zip(expected, found, strict=True):
        assert relative(one[:1], other[:1]) <= 1e-4
        assert relative(one[1:], other[1:]) > 1e-4, "the second sample has other kernels"
