"""Networks that are special in what goes in, what comes out, or how they compute."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolutional import conv_norm, pooled_head
from .fixed import fixed


class _ControlFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), pooled_head(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.sum() > 0:
            y = F.relu(y)
        return self.head(y)


@fixed
def control_flow() -> tuple[nn.Module, Tensor]:
    """A branch on the data, which cannot be captured."""
    return _ControlFlow(), torch.randn(2, 3, 8, 8)


class _NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).mean((2, 3))


@fixed
def no_parameters() -> tuple[nn.Module, Tensor]:
    """Nothing to make dynamic."""
    return _NoParameters(), torch.randn(2, 3, 8, 8)


@dataclass
class Output:
    """A structured output, known to torch's pytrees."""

    logits: Tensor
    features: tuple[Tensor, ...]


torch.export.register_dataclass(Output, serialized_type_name="tests.handmade.Output")


class Named(NamedTuple):
    """The same as a named tuple."""

    logits: Tensor
    features: tuple[Tensor, ...]


OUTPUTS: dict[str, Callable[[Tensor, tuple[Tensor, ...]], Any]] = {
    "dict": lambda logits, features: {"logits": logits, "features": list(features)},
    "tuple": lambda logits, features: (logits, features),
    "named": Named,
    "dataclass": Output,
}


class _MultiOutput(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.head = conv_norm(3, 6), conv_norm(6, 8, stride=2), pooled_head(8)

    def forward(self, x: Tensor) -> Any:
        first = F.relu(self.first(x))
        second = F.relu(self.second(first))
        return OUTPUTS[self.kind](self.head(second), (first.mean((2, 3)), second.mean((2, 3))))


@fixed
def multi_output(kind: str = "dict") -> tuple[nn.Module, Tensor]:
    """Logits and pooled features, in a "dict", "tuple", "named" tuple or "dataclass"."""
    return _MultiOutput(kind), torch.randn(2, 3, 8, 8)


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Sequential(conv_norm(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.table, self.head = nn.Linear(4, 6), nn.Linear(14, 5)

    def forward(self, image: Tensor, *, table: Tensor, scale: Tensor | None = None) -> Tensor:
        row = F.relu(self.table(table))
        row = row if scale is None else row * scale
        return self.head(torch.cat((self.vision(image), row), dim=1))


@fixed
def two_inputs() -> tuple[nn.Module, dict[str, Tensor]]:
    """An image and a keyword-only table, the optional third input left out."""
    return _TwoInputs(), {"image": torch.randn(2, 3, 8, 8), "table": torch.randn(2, 4)}


class _BufferConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv_norm(3, 6), pooled_head(6)
        self.offset = torch.randn(6, 1, 1)
        self.register_buffer("scale", torch.rand(6, 1, 1) + 0.5)
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.tensor([0.5, 0.4, 0.3])
        x = x - mean.to(x.device, x.dtype)[:, None, None]
        return self.head(F.relu(self.conv(x)) * self.scale + self.offset)


@fixed
def buffer_constant() -> tuple[nn.Module, Tensor]:
    """A tensor made in forward, a tensor that is a plain attribute, and a buffer."""
    return _BufferConstant(), torch.randn(2, 3, 8, 8)


class _DtypeLiterals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2)
        steps = torch.arange(y.shape[1], device=x.device)[None, :, None] / y.shape[1]
        y = y + torch.zeros(y.shape, dtype=x.dtype, device=x.device) + steps.to(y.dtype)
        y = y + torch.full((6,), 0.1, dtype=x.dtype, device=x.device)
        weights = torch.softmax(y.float(), dim=1).to(x.dtype)
        return self.head(self.norm((weights * y).sum(1)))


@fixed
def dtype_literals() -> tuple[nn.Module, Tensor]:
    """Factories and casts that name dtype and device, some literally (`float`), some after the input."""
    return _DtypeLiterals(), torch.randn(2, 3, 8, 8)
