"""Galleries of people: build, search and change them, on disk, in Milvus or in a store of your own."""

from rga_reid.gallery.gallery import Gallery, GalleryBuilder
from rga_reid.gallery.store import RemovalResult, VectorStore

__all__ = ["Gallery", "GalleryBuilder", "RemovalResult", "VectorStore"]
