"""Deployed models against what they replace: the source, static networks of every width, the ideal of a mix.

All candidates of a part run in turn, round after round, in one process on one thread; what is reported is
the quartiles of the ratios of CPU times within a round. Results are written after every part.

    full       deployed at full capacity over the source
    width      a specialized graph, the deployed model forced to the width, and the deployed model whose gate
               always picks it, each over a static network of that width built by hand
    real       deployed at a width over the source, beside the ratio of MACs
    mixed      rows dealt evenly to the widths: time of the static networks, each on its own rows, over the
               time of the deployed model on all of them (1 is the ideal)
    memory     weights and the peak of live activations over those of the source
    compiled   full capacity with Inductor over the compiled source

``python -m benchmarks --missing deployment`` goes on where an earlier run was interrupted;
``python -m benchmarks.deployment PATTERN`` measures some of the parts.
"""

from benchmarks.deployment.sweep import compiled, compiled_missing, missing, run

__all__ = ["compiled", "compiled_missing", "missing", "run"]
