"""Data sets: cards, tables of images, labels, decoding, checks. Nothing here needs torch."""

from rga_reid.data.cache import cached_images
from rga_reid.data.cards import Card, RandomSplit, Source, Split, load_card
from rga_reid.data.check import Counts, DataReport, check_data
from rga_reid.data.duplicates import find_duplicates
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
    "RandomSplit",
    "Source",
    "Split",
    "cached_images",
    "check_data",
    "decode",
    "find_duplicates",
    "list_images",
    "load_card",
    "read_image",
    "read_table",
    "read_training",
    "table_digest",
    "table_from_files",
    "table_from_images",
]
