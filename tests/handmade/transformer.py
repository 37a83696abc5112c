"""Transformers. Shapes: `B` batch, `N` tokens, `C` width, `H` heads, `K` key-value heads, `D` head dim."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fixed import fixed


@torch.library.custom_op("tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    """An elementwise operator of which a compiler knows neither a rule nor a decomposition."""
    return x * torch.sigmoid(1.7 * x)


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _mystery_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    gate = torch.sigmoid(1.7 * x)
    return grad * (gate + 1.7 * x * gate * (1 - gate))


def _mystery_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


mystery.register_autograd(_mystery_backward, setup_context=_mystery_context)


class _ViTBlock(nn.Module):
    """Pre-norm; qkv in one layer viewed as [B, N, 3, H, D], as timm has it."""

    def __init__(self, width: int, heads: int, hidden: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.act = heads, act
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class _ViT(nn.Module):
    """12 wide, 3 heads of 4, hidden 20, on 4 patches and a class token."""

    def __init__(self, acts: list[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 12, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 12))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.Sequential(*(_ViTBlock(12, 3, 20, act) for act in acts))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


@fixed
def vit(depth: int = 2) -> tuple[nn.Module, Tensor]:
    """A vision transformer with a class token."""
    return _ViT([F.gelu] * depth), torch.randn(2, 3, 8, 8)


@fixed
def unknown_op_vit() -> tuple[nn.Module, Tensor]:
    """`vit` with the operator `tests::mystery` as the activation of its second block."""
    # By its registered name, because the function that defines an operator cannot be copied.
    return _ViT([F.gelu, torch.ops.tests.mystery.default]), torch.randn(2, 3, 8, 8)


class _BertBlock(nn.Module):
    """Post-norm; three layers for q, k and v, and an explicit softmax with an additive mask."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.output(self.attend(x, bias))))
        return self.norm2(x + self.dropout(self.down(F.gelu(self.up(x)))))

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        b, n, c = x.shape
        layers = (self.query, self.key, self.value)
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in layers)
        scores = q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5 + bias
        return (self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).reshape(b, n, c)


class _Bert(nn.Module):
    """12 wide, 2 heads of 6, hidden 20, on ids [B, 7] of 16 words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(16, 12), nn.Embedding(8, 12)
        self.norm = nn.LayerNorm(12)
        self.layers = nn.ModuleList(_BertBlock(12, 2, 20) for _ in range(2))
        self.pooler, self.classifier = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(steps))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


@fixed
def bert_like() -> tuple[nn.Module, dict[str, Tensor]]:
    """A post-norm encoder on ids and a mask (keywords), with dropout and a pooler."""
    ids, lengths = torch.randint(16, (2, 7)), torch.tensor([[7], [4]])
    return _Bert(), {"input_ids": ids, "attention_mask": (torch.arange(7) < lengths).long()}


class _RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class _DecoderBlock(nn.Module):
    """Grouped queries (H = 4 on K = 2, D = 4), rotary positions, gated MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _RmsNorm(width), _RmsNorm(width)
        self.q_proj, self.o_proj = nn.Linear(width, 16, bias=False), nn.Linear(16, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, 8, bias=False), nn.Linear(width, 8, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x), cos, sin)
        y = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, -1, 4).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        k, v = (t[:, :, None].expand(b, 2, 2, n, 4).reshape(b, 4, n, 4) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, -1))


class _Decoder(nn.Module):
    """12 wide, hidden 20, on ids [B, 6] of 16 words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(16, 12), _RmsNorm(12)
        self.layers = nn.ModuleList(_DecoderBlock(12, 20) for _ in range(2))
        self.lm_head = nn.Linear(12, 16, bias=False)
        self.register_buffer("inv_freq", 100.0 ** (-torch.arange(0, 4, 2) / 4), persistent=False)
        self.inv_freq: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(ids.shape[1], device=ids.device).float(), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        return self.lm_head(self.norm(x))


@fixed
def decoder() -> tuple[nn.Module, Tensor]:
    """A Llama-like decoder that gives logits per token."""
    return _Decoder(), torch.randint(16, (2, 6))
