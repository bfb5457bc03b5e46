"""Embed images with a model, compare two of them, read and write feature files."""

from rga_reid.inference.embed import extract_features, stream_features
from rga_reid.inference.embedder import Embedder, load_embedder
from rga_reid.inference.verify import Verification, verify
from rga_reid.models.checkpoints import ModelFingerprint

__all__ = [
    "Embedder",
    "ModelFingerprint",
    "Verification",
    "extract_features",
    "load_embedder",
    "stream_features",
    "verify",
]
