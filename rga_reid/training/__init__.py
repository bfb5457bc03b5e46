"""Training with Lightning: data module, module, losses, schedules, callbacks and ``fit``."""

from rga_reid.training.augmentation import Augmentation
from rga_reid.training.callbacks import EMA
from rga_reid.training.datamodule import ReIDData
from rga_reid.training.losses import BatchHardTripletLoss, ReIDLoss
from rga_reid.training.module import ReIDModule
from rga_reid.training.sampler import IdentitySampler
from rga_reid.training.schedules import OneCycle, Schedule, WarmupStep
from rga_reid.training.trainer import check_output, fit, is_first_process

__all__ = [
    "EMA",
    "Augmentation",
    "BatchHardTripletLoss",
    "IdentitySampler",
    "OneCycle",
    "ReIDData",
    "ReIDLoss",
    "ReIDModule",
    "Schedule",
    "WarmupStep",
    "check_output",
    "fit",
    "is_first_process",
]
