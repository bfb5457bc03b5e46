"""Training with Lightning: data module, module, losses, schedules, callbacks and ``fit``."""

from rga_reid.training.augmentation import Augmentation
from rga_reid.training.callbacks import EMA, NaNGuard, ResolutionSchedule
from rga_reid.training.datamodule import ReIDData
from rga_reid.training.losses import BatchHardTripletLoss, CenterLoss, LossTerm, ReIDLoss, ReIDLosses
from rga_reid.training.module import ReIDModule, build_reid_module
from rga_reid.training.sampler import IdentitySampler
from rga_reid.training.schedules import OneCycle, Schedule, WarmupStep
from rga_reid.training.trainer import check_output, fit, is_first_process

__all__ = [
    "EMA",
    "Augmentation",
    "BatchHardTripletLoss",
    "CenterLoss",
    "IdentitySampler",
    "LossTerm",
    "NaNGuard",
    "OneCycle",
    "ReIDData",
    "ReIDLoss",
    "ReIDLosses",
    "ReIDModule",
    "ResolutionSchedule",
    "Schedule",
    "WarmupStep",
    "build_reid_module",
    "check_output",
    "fit",
    "is_first_process",
]
