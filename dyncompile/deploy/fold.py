"""Partial evaluation of one graph.

What decisions, sizes and state alone determine is computed ahead of time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from dyncompile.analysis.exits import find_leaves
from dyncompile.analysis.skips import Skip, find_skips
from dyncompile.program import POLICY
from dyncompile.runtime import ops, synthesis
from dyncompile.runtime.synthesis import Kernels
from dyncompile.state import STATE_PREFIX
from dyncompile.torchlib import items, map_nodes

aten = torch.ops.aten
_ARITHMETIC: tuple[Callable[..., Any], ...] = (operator.mul, operator.add)


def fold(source: fx.Graph, policy: Any, tensors: Mapping[str, Tensor]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """(static graph, the state that it reads by name) of a graph whose `policy` input is known.

    Narrowed tensors keep the source's name. Write-backs of statistics are dropped: a static network owns its
    own.
    """
    folder = _Folder(source, policy, tensors)
    for node in source.nodes:
        folder.visit(node)
    folder.graph.eliminate_dead_code()
    folder.graph.lint()
    return folder.graph, folder.state


class _Folder:
    def __init__(self, source: fx.Graph, policy: Any, tensors: Mapping[str, Tensor]) -> None:
        self._policy, self._tensors = policy, tensors
        self._known: dict[fx.Node, Any] = {}
        self._names: dict[fx.Node, str] = {}
        self._static: dict[fx.Node, fx.Node] = {}
        self._last_read: fx.Node | None = None
        self._products = {skip.product: skip for skip in find_skips(source)}
        idle = [skip for skip in self._products.values() if skip.kept and not any(self._gains(skip.product))]
        self._ends = {skip.exit: skip for skip in idle}
        self._left_out = {skip.product for skip in idle}
        for skip in self._products.values():
            for one, gain in zip(skip.alternatives, self._gains(skip.product), strict=True):
                self._left_out.update(one.body if gain == 0 else ())
        for leave in find_leaves(source):
            stops = self._stops(leave.node)
            self._left_out.update(leave.rest if stops else leave.own)
        self._forms: dict[Any, Callable[[fx.Node], Any]] = {
            ops.gain: self._multiplied,
            ops.mix: self._multiplied,
            ops.scale: self._scaled,
            ops.leave: lambda node: self._operand(node.all_input_nodes[1 if self._stops(node) else 0]),
            **dict.fromkeys(synthesis.LAYERS, self._with_one_kernel),
        }
        self.graph = fx.Graph()
        self.state: dict[str, Tensor] = {}

    def visit(self, node: fx.Node) -> None:
        if node in self._left_out:
            return
        if node in self._ends:
            self._static[node] = self._without_branch(self._ends[node])
        elif node.target in self._forms:
            self._static[node] = self._forms[node.target](node)
        elif node.op == "placeholder" and node.target == POLICY:
            self._known[node] = self._policy
        elif node.op == "get_attr":
            self._known[node], self._names[node] = self._tensors[str(node.target)], str(node.target)
        elif self._is_foldable(node):
            self._evaluate(node)
        elif node.target is not ops.put:
            new = self._static[node] = self.graph.node_copy(node, self._operand)
            new.meta = dict(node.meta)
            if node.op == "placeholder":
                self._last_read = new

    # -- exits and kernels --------------------------------------------------------------------

    def _stops(self, node: fx.Node) -> bool:
        """Whether the rows leave at an exit."""
        decision = node.all_input_nodes[-1]
        rows = self._policy.decide(decision.args[1], ()).rows[:1]
        return bool((rows > 0).any())

    def _with_one_kernel(self, node: fx.Node) -> fx.Node:
        """A layer whose kernel is known, as an ordinary one."""
        x, *others = node.args
        args = (self._operand(x), *(self._operand(a) if isinstance(a, fx.Node) else a for a in others))  # pyright: ignore
        if node.target is synthesis.basis_linear:
            return self._call(node, aten.linear.default, args)
        named = isinstance(node.args[4], str)
        return self._call(node, aten.conv2d.padding if named else aten.conv2d.default, args)

    # -- gains --------------------------------------------------------------------------------

    def _gains(self, node: fx.Node) -> list[float]:
        """What all rows multiply the operands of a product by."""
        _, decision, weights, _ = node.args
        rows = self._policy.decide(decision.args[1], ()).rows[:1]  # pyright: ignore
        several = items(weights) if node.target is ops.mix else [weights]
        if not len(rows):
            return [1.0, *[0.0] * (len(several) - 1)]
        return [float(rows[0] @ rows.new_tensor(own)) for own in several]

    def _without_branch(self, skip: Skip) -> fx.Node:
        kept = self._operand(cast(fx.Node, skip.kept))
        return self._call(skip.exit, aten.clone.default, (kept,)) if skip.exit in skip.rewritten else kept

    def _multiplied(self, node: fx.Node) -> fx.Node:
        """The operands of a product that have a gain, each times it, summed."""
        gains, operands = self._gains(node), items(node.args[0])
        taken = [(x, gain) for x, gain in zip(operands, gains, strict=True) if gain] or [(operands[0], 0.0)]
        parts = [self._times(node, self._operand(x), gain) for x, gain in taken]
        if parts == [self._operand(x) for x, _ in taken[:1]] and self._is_borrowed(node, taken[0][0]):
            return self._call(node, aten.clone.default, (parts[0],))
        total = parts[0]
        for part in parts[1:]:
            total = self._call(node, aten.add.Tensor, (total, part))
        return total

    def _times(self, node: fx.Node, x: fx.Node, factor: float) -> fx.Node:
        return x if factor == 1 else self._call(node, aten.mul.Tensor, (x, factor))

    def _is_borrowed(self, node: fx.Node, operand: fx.Node) -> bool:
        """Whether a product would be the memory of something else, and is written into."""
        skip = self._products.get(node)
        owned = skip is not None and not {skip.exit, skip.last}.isdisjoint(skip.rewritten)
        return (
            skip is not None
            and owned
            and any(one.borrowed for one in skip.alternatives if one.output is operand)
        )

    def _scaled(self, node: fx.Node) -> fx.Node:
        """Times a constant: one gain per position of an axis, the same for all rows."""
        source, gains, axis, _ = node.args
        x, values = self._operand(source), self._known[gains][0]  # pyright: ignore
        if bool((values == 1).all()):
            return x
        shape = [1] * node.meta["val"].dim()
        shape[axis] = -1  # pyright: ignore
        like = next(t for t in self._tensors.values() if t.is_floating_point())
        name = f"{STATE_PREFIX}.scales.{node.name}"
        self.state[name] = values.detach().to(like.device, like.dtype).reshape(shape)
        self._known[node] = self.state[name]
        return self._call(node, aten.mul.Tensor, (x, self._read(name, node)))

    def _call(self, like: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
        new = self.graph.call_function(target, args)
        new.meta = dict(like.meta)
        return new

    # -- state --------------------------------------------------------------------------------

    def _is_foldable(self, node: fx.Node) -> bool:
        if node.target not in ops.FOLDABLE and node.target not in _ARITHMETIC:
            return False
        return all(operand in self._known for operand in node.all_input_nodes)

    def _evaluate(self, node: fx.Node) -> None:
        args, kwargs = map_nodes((node.args, dict(node.kwargs)), self._known.__getitem__)
        assert callable(node.target)
        with torch.no_grad():
            value = node.target(*args, **kwargs)
            self._known[node] = value.single() if isinstance(value, Kernels) else value
        named = [self._names[operand] for operand in node.all_input_nodes if operand in self._names]
        if named:  # a narrowed or picked tensor goes by the name of the source's tensor
            self._names[node] = min(named, key=lambda name: name.startswith(f"{STATE_PREFIX}."))

    def _operand(self, node: fx.Node) -> Any:
        """A node's value as an argument in the static graph: a literal, or a read of (narrowed) state."""
        if node in self._static:
            return self._static[node]
        value = self._known[node]
        if not isinstance(value, Tensor):
            return value
        self._static[node] = self._read(self._names[node], node)
        self.state[self._names[node]] = value
        return self._static[node]

    def _read(self, name: str, node: fx.Node) -> fx.Node:
        """A state read after the inputs and the reads before it."""
        assert self._last_read is not None
        with self.graph.inserting_after(self._last_read):
            self._last_read = self.graph.get_attr(name)
        self._last_read.meta = {key: value for key, value in node.meta.items() if key != "val"}
        self._last_read.meta["val"] = self._known[node]
        return self._last_read
