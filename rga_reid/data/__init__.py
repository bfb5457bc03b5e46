"""Data sets: cards, tables of images, decoding. Nothing here needs torch, except ``transforms``."""

from rga_reid.data.cards import Card, load_card
from rga_reid.data.check import DataReport, check_data
from rga_reid.data.images import MAX_PIXELS, ImageError, decode, list_images, read_image
from rga_reid.data.tables import read_table, table_from_images

__all__ = [
    "MAX_PIXELS",
    "Card",
    "DataReport",
    "ImageError",
    "check_data",
    "decode",
    "list_images",
    "load_card",
    "read_image",
    "read_table",
    "table_from_images",
]
