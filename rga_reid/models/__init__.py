"""Models: ResNet with attention slots, the embedding head, checkpoints."""

from rga_reid._deprecated import module_getattr
from rga_reid.models.analysis import count_costs
from rga_reid.models.backbone import Backbone
from rga_reid.models.build import build_model, resolve_attention
from rga_reid.models.checkpoints import fingerprint, load_model, save_model
from rga_reid.models.colour_histogram import ColourHistogram
from rga_reid.models.convert import ConvertedModel, read_official_rga, read_published
from rga_reid.models.embedding import EmbeddingModel, FlipTTA, TrainingOutput
from rga_reid.models.export import ExportSettings, export_model
from rga_reid.models.resnet import ResNet, count_parameters

__all__ = [
    "Backbone",
    "ColourHistogram",
    "ConvertedModel",
    "EmbeddingModel",
    "ExportSettings",
    "FlipTTA",
    "ResNet",
    "TrainingOutput",
    "build_model",
    "count_costs",
    "count_parameters",
    "export_model",
    "fingerprint",
    "load_model",
    "read_official_rga",
    "read_published",
    "resolve_attention",
    "save_model",
]

__getattr__ = module_getattr(__name__)
