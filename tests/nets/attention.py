"""Self-attention in the forms that models in use have it.

Shapes: `B` batch, `N` tokens, `H` heads, `K` key-value heads, `D` and `V` dims of a query and a value head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import norm_1d
from .net import Spec

PROJECTIONS = ("reshape", "split", "separate")
KERNELS = ("sdpa", "matmul", "einsum")
REPEATS = ("expand", "interleave", "native")
ROTARIES = ("none", "half", "interleaved")


@dataclass(frozen=True, repr=False)
class Attention(Spec):
    """Multi-head attention; `groups` query heads share a key-value head, `value` is V (0: as D).

    `project`: a layer viewed as [3, H, D] ("reshape") or cut in three ("split"), or three ("separate").
    `repeat`: how a key-value head serves its query heads; "native" leaves it to the SDPA operator.
    """

    kv_heads: int
    dim: int
    groups: int = 1
    value: int = 0
    project: str = "reshape"
    kernel: str = "sdpa"
    repeat: str = "expand"
    rotary: str = "none"
    normed: bool = False
    bias: bool = True
    drop: float = 0.0

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.groups

    @property
    def value_dim(self) -> int:
        """Size of a value head."""
        return self.value or self.dim

    def build(self, width: int, causal: bool) -> nn.Module:
        return AttentionModule(self, width, causal)


@dataclass(frozen=True, repr=False)
class Multihead(Spec):
    """nn.MultiheadAttention, which needs `heads` to divide the width; `weights` asks for the map too."""

    heads: int
    weights: bool = False
    drop: float = 0.0

    def build(self, width: int, causal: bool) -> nn.Module:
        return MultiheadModule(self, width, causal)


class MultiheadModule(nn.Module):
    """[B, N, width] -> [B, N, width]."""

    def __init__(self, spec: Multihead, width: int, causal: bool) -> None:
        super().__init__()
        self.weights, self.causal = spec.weights, causal
        self.attention = nn.MultiheadAttention(width, spec.heads, spec.drop, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        padding = None if mask is None else ~mask
        n = x.shape[1]
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1) if self.causal else None
        return self.attention(x, x, x, padding, need_weights=self.weights, attn_mask=future)[0]


class AttentionModule(nn.Module):
    """[B, N, width] -> [B, N, width]; `mask` [B, N] is true at the tokens that may be seen."""

    def __init__(self, spec: Attention, width: int, causal: bool) -> None:
        super().__init__()
        self.spec, self.causal = spec, causal
        qkv = FusedProjection if spec.project != "separate" else SeparateProjection
        self.qkv = qkv(spec, width)
        self.rotary = Rotary(spec.dim, spec.rotary) if spec.rotary != "none" else None
        self.norm_q, self.norm_k = (norm_1d("rms", spec.dim) if spec.normed else nn.Identity() for _ in "qk")
        self.drop = nn.Dropout(spec.drop)
        self.out = nn.Linear(spec.heads * spec.value_dim, width, spec.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x)
        q, k = self.norm_q(q), self.norm_k(k)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        if self.spec.kernel == "sdpa":
            y = self._fused(q, k, v, mask)
            return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.out.in_features))
        y = self._explicit(q, self._repeated(k), self._repeated(v), mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def _repeated(self, x: Tensor) -> Tensor:
        """[B, K, N, D] -> [B, H, N, D]."""
        b, k, n, d = x.shape
        if self.spec.groups == 1:
            return x
        if self.spec.repeat == "interleave":
            return x.repeat_interleave(self.spec.groups, dim=1)
        return x[:, :, None].expand(b, k, self.spec.groups, n, d).reshape(b, k * self.spec.groups, n, d)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        native = self.spec.repeat == "native" and self.spec.groups > 1
        k, v = (k, v) if native else (self._repeated(k), self._repeated(v))
        visible = None if mask is None else mask[:, None, None, :]
        drop = self.spec.drop if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, visible, drop, self.causal, enable_gqa=native)

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        einsum = self.spec.kernel == "einsum"
        scores = torch.einsum("bhnd,bhmd->bhnm", q, k) if einsum else q @ k.transpose(-2, -1)
        scores = scores * self.spec.dim**-0.5
        if mask is not None:
            hidden = 1.0 - mask[:, None, None, :].to(scores.dtype)
            scores = scores + hidden * torch.finfo(scores.dtype).min
        if self.causal:
            n = scores.shape[-1]
            future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        weights = self.drop(scores.softmax(dim=-1))
        return torch.einsum("bhnm,bhmd->bhnd", weights, v) if einsum else weights @ v


class FusedProjection(nn.Module):
    """[B, N, width] -> q [B, H, N, D], k [B, K, N, D], v [B, K, N, V] by one layer."""

    def __init__(self, spec: Attention, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.sizes = [spec.heads * spec.dim, spec.kv_heads * spec.dim, spec.kv_heads * spec.value_dim]
        self.linear = nn.Linear(width, sum(self.sizes), spec.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.spec.project == "reshape":
            b, n, _ = x.shape
            qkv = self.linear(x).reshape(b, n, 3, self.spec.heads, self.spec.dim)
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return _as_heads(self.spec, *self.linear(x).split(self.sizes, dim=-1))


class SeparateProjection(nn.Module):
    """[B, N, width] -> q [B, H, N, D], k [B, K, N, D], v [B, K, N, V] by three layers."""

    def __init__(self, spec: Attention, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.q = nn.Linear(width, spec.heads * spec.dim, spec.bias)
        self.k = nn.Linear(width, spec.kv_heads * spec.dim, spec.bias)
        self.v = nn.Linear(width, spec.kv_heads * spec.value_dim, spec.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return _as_heads(self.spec, self.q(x), self.k(x), self.v(x))


def _as_heads(spec: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    b, n, _ = q.shape
    dims = (spec.dim, spec.dim, spec.value_dim)
    return tuple(t.view(b, n, -1, d).transpose(1, 2) for t, d in zip((q, k, v), dims, strict=True))


class Rotary(nn.Module):
    """Rotary positions on [B, H, N, D]: pairs i with i + D/2 ("half", Llama) or 2i with 2i + 1 (EVA)."""

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("frequencies", 100.0 ** (-torch.arange(0, dim, 2) / dim), persistent=False)
        self.frequencies: Tensor

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2], device=x.device)[:, None] * self.frequencies
        return self._halves(x, angles) if self.kind == "half" else self._pairs(x, angles)

    def _halves(self, x: Tensor, angles: Tensor) -> Tensor:
        angles = torch.cat((angles, angles), dim=-1)
        left, right = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-right, left), dim=-1) * angles.sin()

    def _pairs(self, x: Tensor, angles: Tensor) -> Tensor:
        cos, sin = angles.cos(), angles.sin()
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
