"""Retrieval: feature extraction and galleries."""

from rga_reid.retrieval.extraction import extract_features
from rga_reid.retrieval.gallery import Gallery
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.verification import Verification, verify

__all__ = ["Gallery", "ModelRecord", "Verification", "extract_features", "verify"]
