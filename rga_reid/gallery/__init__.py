"""Galleries of people: build, search, change, on disk or in Milvus."""

from rga_reid.gallery.folder import GalleryBuilder
from rga_reid.gallery.gallery import Gallery, RemovalResult

__all__ = ["Gallery", "GalleryBuilder", "RemovalResult"]
