"""Training: recipes, phases, objectives, and the loop that carries them out on one process or many."""

from dyncompile.train.calibrate_exit import ExitCalibration, calibrate_exit
from dyncompile.train.fit import fit
from dyncompile.train.history import EpochRecord, History, StepRecord
from dyncompile.train.phase import (
    Batch,
    Clock,
    Loss,
    Moment,
    Objective,
    Optimization,
    Phase,
    Recipe,
    Schedule,
    Turn,
)
from dyncompile.train.progress import Update

__all__ = [
    "Batch",
    "Clock",
    "EpochRecord",
    "ExitCalibration",
    "History",
    "Loss",
    "Moment",
    "Objective",
    "Optimization",
    "Phase",
    "Recipe",
    "Schedule",
    "StepRecord",
    "Turn",
    "Update",
    "calibrate_exit",
    "fit",
]
