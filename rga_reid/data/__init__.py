"""Data sets: cards, tables of images, decoding. Nothing here needs torch, except ``transforms``."""

from rga_reid.data.cache import cached_images
from rga_reid.data.cards import Card, Source, Split, load_card
from rga_reid.data.check import Counts, DataReport, check_data
from rga_reid.data.images import MAX_PIXELS, ImageError, decode, list_images, read_image
from rga_reid.data.readers import read_table, read_training, table_digest, table_from_files, table_from_images
from rga_reid.data.records import Problem

__all__ = [
    "MAX_PIXELS",
    "Card",
    "Counts",
    "DataReport",
    "ImageError",
    "Problem",
    "Source",
    "Split",
    "cached_images",
    "check_data",
    "decode",
    "list_images",
    "load_card",
    "read_image",
    "read_table",
    "read_training",
    "table_digest",
    "table_from_files",
    "table_from_images",
]
