"""Galleries of people: build, search and change them, on disk, in Milvus or in your own store."""

from rga_reid.gallery.build import GalleryBuilder
from rga_reid.gallery.gallery import Gallery
from rga_reid.gallery.milvus_uri import MilvusURI
from rga_reid.gallery.store import RemovalResult, VectorStore

__all__ = ["Gallery", "GalleryBuilder", "MilvusURI", "RemovalResult", "VectorStore"]
