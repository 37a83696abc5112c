"""dyncompile: turn any static PyTorch network into a dynamic one that spends less work on easy inputs.

>>> import dyncompile as dc
>>> dyn = dc.dynamize(model, method="dsnet", example_inputs=images)  # equals `model` at full capacity
>>> history = dc.fit(dyn, dc.recipes.dsnet(target=0.5), train_data, val_data)  # meets half of the MACs
>>> logits, route = dyn.run(images, policy=dc.Learned())  # every image at the width that its gate picks
>>> small = dc.specialize(dyn, dyn.route(0))  # a plain static, physically narrow fx.GraphModule
"""

from dyncompile.analysis.facts import Facts
from dyncompile.checkpoint import load, reduce_to_source, save
from dyncompile.deploy import deploy, specialize
from dyncompile.errors import (
    CaptureError,
    CheckpointError,
    ContractError,
    DyncompileError,
    InputError,
    NoSiteError,
    RouteError,
    SpecError,
    TrainingError,
)
from dyncompile.latency import Latency
from dyncompile.pipeline import Pass, Plan, Rejection, Site, dynamize
from dyncompile.policies import Forced, Full, Learned, Policy, Sampled, Smallest
from dyncompile.previews import register_preview
from dyncompile.program import Choice, Domain, Program, Route
from dyncompile.runtime.model import DynamicModel
from dyncompile.train import ExitCalibration, calibrate_exit, fit, recipes
from dyncompile.verify import Report, verify

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CheckpointError",
    "Choice",
    "ContractError",
    "Domain",
    "DynamicModel",
    "DyncompileError",
    "ExitCalibration",
    "Facts",
    "Forced",
    "Full",
    "InputError",
    "Latency",
    "Learned",
    "NoSiteError",
    "Pass",
    "Plan",
    "Policy",
    "Program",
    "Rejection",
    "Report",
    "Route",
    "RouteError",
    "Sampled",
    "Site",
    "Smallest",
    "SpecError",
    "TrainingError",
    "calibrate_exit",
    "deploy",
    "dynamize",
    "fit",
    "load",
    "recipes",
    "reduce_to_source",
    "register_preview",
    "save",
    "specialize",
    "verify",
]
