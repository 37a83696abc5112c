"""A captured network as data: what a checkpoint keeps so that it loads without the source's code.

torch has a format of its own (``.pt2``). It is not used here: its reader falls back to unpickling whatever
the file holds (``torch.load(..., weights_only=False)``) and evaluates the text of symbolic sizes with sympy.
Ours is plain JSON. Operators are named, and restored from a closed list; arguments are literals; sizes, types
and metadata are not stored but computed again.
"""

from dyncompile.stored.network import describe_network, restore_network, source_constants
from dyncompile.stored.sizes import are_sizes, is_of_a_size, sizes_of

__all__ = ["are_sizes", "describe_network", "is_of_a_size", "restore_network", "sizes_of", "source_constants"]
