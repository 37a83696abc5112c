"""Every rule of the dimension types on operators in isolation, each between two layers of its own.

`FREE` operators let the width of the layer before them move, `FIXED` ones do not and say why. All of them
pass the checks of `tests.validity`, so that neither a wrong type nor a wrong literal goes unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile.analysis.dims.rules  # noqa: F401  (fills the table)
from dyncompile.analysis.dims.table import _RULES, find_rule  # pyright: ignore[reportPrivateUsage]
from tests.nets import randomize
from tests.support import Subject
from tests.validity import assert_valid

Op = Callable[[Tensor], Tensor]
WIDTH = 12
PAD = (1, 1, 2, 2)
INDEX = torch.tensor([7, 1, 4, 4])


class Parallel(nn.Module):
    """Each operator after a layer of 12 outputs and before a head of its own; all outputs are added."""

    def __init__(self, ops: Sequence[Op], first: Callable[[], nn.Module], x: Tensor, pool: Op) -> None:
        super().__init__()
        self.ops, self.pool = ops, pool
        self.own = nn.ModuleList(op for op in ops if isinstance(op, nn.Module))
        self.first = nn.ModuleList(first() for _ in ops)
        with torch.no_grad():
            sizes = [pool(op(layer(x))).shape[1] for op, layer in zip(ops, self.first, strict=True)]
        self.head = nn.ModuleList(nn.Linear(n, 3) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        triples = zip(self.ops, self.first, self.head, strict=True)
        return torch.stack([head(self.pool(op(layer(x)))) for op, layer, head in triples]).sum(0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, 5, batch_first=True)

    def forward(self, y: Tensor) -> Tensor:
        return self.gru(y[:, None])[0][:, -1]


def attention(y: Tensor) -> Tensor:
    """Channels of [B, 12, 6, 6] as the dim of a single head."""
    y = y.flatten(2).mT
    return F.scaled_dot_product_attention(y, y.relu(), y.tanh()).mT.unflatten(2, (6, 6))


def same(y: Tensor) -> Tensor:
    return y


def grid(y: Tensor) -> Tensor:
    return F.affine_grid(torch.eye(2, 3).expand(y.shape[0], 2, 3), [y.shape[0], 1, 4, 4], align_corners=False)


FREE: dict[str, dict[str, Op]] = {
    # y: [B, 12]
    "vector": {
        "pointwise": lambda y: F.gelu(y) + y.clamp(-1, 1) * y.sigmoid() - 0.1,
        "where": lambda y: torch.where(y > 0, y, 0.1 * y).masked_fill(y > 2, 2.0),
        "in place": lambda y: y.add_(1).mul_(0.5),
        "addcmul": lambda y: torch.addcmul(y, y, y) + torch.lerp(y, y.square(), 0.3),
        "extremes of two": lambda y: torch.maximum(y, -y) + torch.max(y, y.square()),
        "like": lambda y: y + torch.ones_like(y) + y.new_zeros(y.shape) + y.new_full((WIDTH,), 0.5),
        "factories": lambda y: y + torch.ones(WIDTH) * 0.1 + torch.zeros(y.shape),
        "dropout": lambda y: F.dropout(y.contiguous().clone().detach() + y, 0.0),
        "softmax": lambda y: y.softmax(1) + y.log_softmax(1) + y,
        "layer norm": lambda y: F.layer_norm(y, (WIDTH,)) + F.rms_norm(y, (WIDTH,)),
        "reductions": lambda y: y - y.mean(1, True) + y.amax(1, True) + y.std(1, correction=0, keepdim=True),
        "sums": lambda y: y * y.sum(1, keepdim=True) + F.normalize(y, dim=1) + y.norm(dim=1, keepdim=True),
        "several outputs": lambda y: y + torch.var_mean(y, 1, correction=0, keepdim=True)[1],
        "values and indices": lambda y: y + y.max(1, keepdim=True)[0] + y.min(1, keepdim=True)[0],
        "logsumexp": lambda y: y + y.logsumexp(1, keepdim=True) + y.prod(1, keepdim=True),
        "view": lambda y: y.view(-1, 3, 4).transpose(1, 2).reshape(y.shape[0], WIDTH),
        "unflatten": lambda y: y.unflatten(1, (2, 6)).permute(0, 2, 1).flatten(1),
        "as others": lambda y: y.view_as(y.square()).reshape_as(y).expand_as(y).type_as(y),
        "axes": lambda y: y[:, None].squeeze(1).unsqueeze(-1).squeeze((1, 2)).movedim(1, 0).T,
        "chunk": lambda y: torch.cat(y.chunk(3, 1)[::-1], 1),
        "split": lambda y: torch.cat((y.split(5, 1)[1].relu(), y.split([5, 2, 5], 1)[0]), 1),
        "slices": lambda y: torch.cat((y[:, 7:], y[:, :4].tanh(), y.narrow(1, 4, 3)), 1),
        "every third": lambda y: y[:, ::3],
        "glu": lambda y: F.glu(y, 1),
        "stack": lambda y: torch.stack((y, y.relu()), 1).sum(1),
        "expand": lambda y: y[:, None].expand(-1, 3, -1).reshape(y.shape[0], 36),
        "repeat": lambda y: torch.cat((y.repeat(1, 2), y[:, None].repeat(1, 3, 1).flatten(1), y.tile(2)), 1),
        "interleave": lambda y: y.repeat_interleave(2, 1),
        "pad": lambda y: F.pad(y, (2, 1)),
        "outer": lambda y: torch.einsum("bi,bj->bij", y, y.relu()).flatten(1),
        "bmm": lambda y: (y.view(-1, 3, 4) @ y.relu().view(-1, 3, 4).mT).flatten(1),
        "baddbmm": lambda y: torch.baddbmm(torch.ones(1), y.view(-1, 3, 4), y.view(-1, 3, 4).mT).flatten(1),
        "cosine": lambda y: y * F.cosine_similarity(y, y.relu(), 1)[:, None],
        "slopes": nn.PReLU(WIDTH),
        "vectors": lambda y: y * torch.outer(torch.ones(WIDTH), torch.ones(3)).sum(1),
        "grids": lambda y: y + torch.meshgrid(torch.ones(WIDTH), torch.ones(2), indexing="ij")[0].mean(1),
        "triangle": lambda y: (y.view(-1, 3, 4).tril() + y.view(-1, 3, 4).triu(1)).flatten(1),
    },
    # y: [B, 12, 6, 6]
    "image": {
        "pools": lambda y: F.max_pool2d(y, 2) + F.avg_pool2d(y, 2) + F.adaptive_max_pool2d(y, 3),
        "resize": lambda y: F.interpolate(y, scale_factor=2) + F.interpolate(y, size=12, mode="bilinear"),
        "bicubic": lambda y: F.interpolate(y, size=(7, 7), mode="bicubic", antialias=True),
        "pads": lambda y: sum((F.pad(y, PAD, mode) for mode in ("reflect", "replicate")), F.pad(y, PAD)),
        "shuffle": lambda y: F.pixel_shuffle(y, 2),
        "unshuffle": lambda y: F.pixel_unshuffle(y, 2),
        "channel shuffle": lambda y: F.channel_shuffle(y, 3),
        "unfold": lambda y: F.fold(F.unfold(y, 3), (6, 6), 3),
        "norms": lambda y: F.instance_norm(y) + F.group_norm(y, 3),
        "channels last": lambda y: F.layer_norm(y.permute(0, 2, 3, 1), (WIDTH,)).permute(0, 3, 1, 2),
        "drop channels": lambda y: F.dropout2d(y, 0.0) + F.hardswish(y) + F.hardsigmoid(y) + F.hardtanh(y),
        "grid": lambda y: F.grid_sample(y, grid(y), align_corners=False),
        "transposed": nn.ConvTranspose2d(WIDTH, 8, 3, 2, groups=2),
        "along one axis": nn.Sequential(nn.Flatten(2), nn.Conv1d(WIDTH, 7, 3), nn.Unflatten(2, (17, 2))),
        "batch norm": nn.BatchNorm2d(WIDTH),
        "attention": attention,
        "tokens": lambda y: y.flatten(2).mT.softmax(1).transpose(1, 2).unsqueeze(-1),
    },
}  # fmt: skip

FIXED: dict[str, dict[str, tuple[Op, str]]] = {
    "vector": {
        "select": (lambda y: y[:, 3:4] * y[:, 3, None], "one position of it is selected"),
        "unbind": (lambda y: torch.stack(y.unbind(1)[::-1], 1), "its positions are unbound"),
        "flip": (lambda y: y.flip(1), "aten.flip.default along it"),
        "sort": (lambda y: y.sort(1)[0], "aten.sort.default along it"),
        "topk": (lambda y: y.topk(4, 1)[0], "aten.topk.default along it"),
        "cumsum": (lambda y: y.cumsum(1), "aten.cumsum.default along it"),
        "roll": (lambda y: y.roll(2, 1), "a cyclic shift along it"),
        "gather": (
            lambda y: y.gather(1, INDEX.expand(y.shape[0], -1)),
            "positions that are looked up by index",
        ),
        "index": (lambda y: y[:, INDEX], "positions that are looked up by index"),
        "index select": (lambda y: y.index_select(1, INDEX), "positions that are looked up by index"),
        "sliding": (lambda y: y.unfold(1, 3, 2).flatten(1), "sliding windows along it"),
        "negative pad": (lambda y: F.pad(y, (-1, -2)), "negative padding cuts it"),
        "constant": (lambda y: y * torch.arange(WIDTH), "meets the fixed size 12"),
        "recurrent": (Recurrent(), "a recurrent layer"),
        "one hot": (lambda y: y + F.one_hot(y.argmax(1), WIDTH), "meets the fixed size 12"),
        "no rule": (lambda y: y.logcumsumexp(1), "no rule for the operator aten.logcumsumexp.default"),
    },
    "image": {
        "response norm": (lambda y: F.local_response_norm(y, 3), "a spatial axis that is pooled"),
    },
}


ELSEWHERE = {
    "core_convolution": "what some composites decompose to",
    "as_strided": "what some pools emit on other devices",
    "embedding": "needs ids: `tests.nets` and `tests.handmade` have them",
    "narrowed": "inserted by passes: composed passes are in `test_slicing`",
    "picked": "as above",
    "untyped": "as above",
    "weighted": "inserted by lcnet: `test_gating` has networks with it",
    "columns": "as above",
    "scaled": "as above",
    "left": "inserted by exits: `test_exits` has networks with it",
    "mixed": "inserted by routing: `test_routing` has networks with it",
    "synthesized": "inserted by basisnet: `test_basis` has networks with it",
    "basis_convolution": "as above",
    "basis_linear": "as above",
}


def build(harness: str, ops: Sequence[Op]) -> Subject:
    """The network of some operators."""
    torch.manual_seed(0)
    if harness == "vector":
        x, first, pool = torch.randn(3, 5), partial(nn.Linear, 5, WIDTH), same
    else:
        x, first, pool = (
            torch.randn(3, 3, 6, 6),
            partial(nn.Conv2d, 3, WIDTH, 1),
            partial(torch.mean, dim=(2, 3)),
        )
    return Subject(randomize(Parallel(ops, first, x, pool)).eval(), (x,), {})


def check_free(harness: str, names: list[str]) -> Subject:
    """All operators at once: capturing takes most of the time."""
    one = build(harness, [FREE[harness][name] for name in names])
    assert_valid(one)
    for i, name in enumerate(names):
        assert one.facts.elastics_of(f"first.{i}.weight"), f"{name} freezes its input"
    assert not one.facts.dims.unknown
    return one


def check_weight_norm() -> Subject:
    """All but masking: rows of zeros, which masking leaves, have no direction (0 / 0)."""
    one = build("vector", [nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 7))])
    assert_valid(one, without=("masked",))
    assert len(one.facts.dims.elastic) == 2
    assert not one.facts.dims.unknown
    return one


def check_fixed(harness: str) -> Subject:
    """Every frozen layer gives the reason of its operator, at the operator's own line."""
    names = list(FIXED[harness])
    one = build(harness, [op for op, _ in FIXED[harness].values()])
    assert_valid(one)
    frozen = {axis.tensor: axis for axis in one.facts.dims.frozen if axis.axis == 0}
    for i, name in enumerate(names):
        assert FIXED[harness][name][1] in frozen[f"first.{i}.weight"].reason, name
        assert frozen[f"first.{i}.weight"].line, name
    return one


@pytest.mark.slow
def test_operators_between_layers() -> None:
    """In one test, so that the last step knows what all the others have used."""
    seen = [check_weight_norm(), *map(check_fixed, FIXED)]
    for harness, ops in FREE.items():
        names = list(ops)
        seen += [check_free(harness, names[i : i + 12]) for i in range(0, len(names), 12)]
    nodes = [node for one in seen for graph in one.program.graphs.values() for node in graph.nodes]
    used = {find_rule(node.target) for node in nodes if node.op == "call_function"}
    unused = {rule.__name__ for rule in _RULES.values() if rule not in used}
    assert unused == set(ELSEWHERE)


def test_rules_are_of_operators_that_exist() -> None:
    """A misspelt key would never be found; an in-place variant counts for its functional twin."""
    keys = [key.split(".")[1:] for key in _RULES if key.startswith("aten.")]
    assert [key for key in keys if not any(exists(key[0] + end, key[1:]) for end in ("", "_"))] == []


def exists(name: str, overload: list[str]) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and set(overload) <= set(packet.overloads())
