"""Retrieval: feature extraction and galleries."""

from rga_reid.retrieval.builder import GalleryBuilder
from rga_reid.retrieval.extraction import extract_features, stream_features
from rga_reid.retrieval.gallery import Erasure, Gallery
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.verification import Verification, verify

__all__ = [
    "Erasure",
    "Gallery",
    "GalleryBuilder",
    "ModelRecord",
    "Verification",
    "extract_features",
    "stream_features",
    "verify",
]
