"""Third-party models by name: ``load("timm:resnet50")`` gives a model and inputs that it accepts.

No third-party model library is imported before a specification asks for it.
"""

from dyncompile.zoo.inputs import example_inputs
from dyncompile.zoo.loaders import load
from dyncompile.zoo.randomization import randomize
from dyncompile.zoo.spec import ModelSpec, Source

__all__ = ["ModelSpec", "Source", "example_inputs", "load", "randomize"]
