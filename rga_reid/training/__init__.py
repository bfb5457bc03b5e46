"""Training: the room that knows Lightning."""

from rga_reid.data.transforms import Augmentation
from rga_reid.training.averaging import EMA
from rga_reid.training.data import ReIDData
from rga_reid.training.fit import check_output, fit, is_first_process
from rga_reid.training.losses import BatchHardTripletLoss, ReIDLoss
from rga_reid.training.module import ReIDModule
from rga_reid.training.sampler import IdentitySampler
from rga_reid.training.schedules import OneCycle, Schedule, WarmupStep

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
