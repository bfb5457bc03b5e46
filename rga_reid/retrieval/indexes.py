"""Approximate indexes: FAISS proposes candidates, the stored vectors decide.

An index never scores what is reported: it names candidate rows, whose cosines are then taken exactly from the
float32 vectors (see ``exact``). So an approximate gallery can miss a match, but never misjudges one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from rga_reid.errors import InputError, quoted
from rga_reid.retrieval.exact import MARGIN, Found, nearest_rows, rescored, rescored_together
from rga_reid.retrieval.vectors import Vectors

#: Settings of each kind. ``flat`` is the exact search, and has none.
SETTINGS: dict[str, tuple[str, ...]] = {
    "flat": (),
    "hnsw": ("hnsw_m", "ef_construction", "ef_search"),
    "ivf": ("nlist", "nprobe"),
    "ivfpq": ("nlist", "nprobe", "pq_m", "pq_bits", "refine"),
}
MIN_ROWS = 1024  #: fewer rows are searched exactly: an index would be slower to ask, and less right

_FACTORY = {
    "hnsw": "HNSW{hnsw_m},Flat",
    "ivf": "IVF{nlist},Flat",
    "ivfpq": "IVF{nlist},PQ{pq_m}x{pq_bits}np",
}
_LARGEST = {"hnsw_m": 256, "pq_bits": 8, "refine": 1024}  # of the others: 65,536
_SMALLEST = {"hnsw_m": 2, "pq_bits": 4}  # of the others: 1
_PER_CENTROID = 39  # training rows that FAISS asks for, for each centroid of its k-means
_TRAINED_ON = 64  # rows for each list, at most: more cost time and memory, and change little
_BLOCK = 65_536  # rows put into lists at a time
_EXACT_SHARE = 10  # the exact search takes over where candidates are more than a tenth of the rows
_SAMPLE, _TOP = 200, 10  # recall is measured on this many queries, to this rank


@dataclass(frozen=True)
class IndexPlan:
    """The kind of index that a gallery wants, and the settings given in place of the automatic ones.

    Args:
        kind: ``flat``, ``hnsw``, ``ivf`` or ``ivfpq``.
        settings: whole numbers by the names in ``SETTINGS``.

    Raises:
        InputError: an unknown kind or setting, a value out of range.
    """

    kind: str = "flat"
    settings: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in SETTINGS:
            raise InputError(f"index: expected {', '.join(SETTINGS)}, got {quoted(self.kind)}")
        for name, value in self.settings.items():
            if name not in SETTINGS[self.kind]:
                known = ", ".join(SETTINGS[self.kind]) or "none"
                raise InputError(f"index {self.kind}: unknown setting {quoted(name)} (known: {known})")
            low, high = _SMALLEST.get(name, 1), _LARGEST.get(name, 65_536)
            if type(value) is not int or not low <= value <= high:
                raise InputError(f"{name}: expected a whole number from {low} to {high}, got {quoted(value)}")

    def check_dimension(self, dimension: int) -> None:
        """Refuse settings that no index of features of this length can have.

        Raises:
            InputError: ``pq_m`` does not divide the dimension.
        """
        parts = self.settings.get("pq_m", 1)
        if dimension % parts:
            raise InputError(f"pq_m: expected a divisor of the dimension {dimension}, got {parts}")

    def chosen(self, rows: int, dimension: int) -> dict[str, int]:
        """All settings of an index of so many rows: those given, the others by its size.

        Lists and codebooks are never larger than the rows can train (39 for each centroid), whatever was
        given.
        """
        given = self.settings
        if self.kind == "hnsw":
            return {"hnsw_m": 32, "ef_construction": 128, "ef_search": 128, **given}
        nlist = min(given.get("nlist", 4 * math.isqrt(rows)), rows // _PER_CENTROID)
        settings = {"nlist": nlist, "nprobe": min(given.get("nprobe", max(16, nlist // 8)), nlist)}
        if self.kind == "ivfpq":
            divisors = [m for m in range(1, 65) if dimension % m == 0 and m <= max(1, dimension // 4)]
            settings["pq_m"] = given.get("pq_m", divisors[-1])
            trainable = (rows // _PER_CENTROID).bit_length() - 1
            settings["pq_bits"] = min(given.get("pq_bits", 8), trainable)
            settings["refine"] = given.get("refine", 16)
        return settings

    def build(self, vectors: np.ndarray) -> Index | None:
        """An index of unit rows, its recall measured; None where the exact search is the better one.

        Args:
            vectors: float32 ``(n, d)``.
        """
        count, dimension = vectors.shape
        if self.kind == "flat" or count < MIN_ROWS:
            return None
        settings = self.chosen(count, dimension)
        made: Any = faiss.index_factory(
            dimension, _FACTORY[self.kind].format(**settings), faiss.METRIC_INNER_PRODUCT
        )
        if self.kind == "hnsw":
            made.hnsw.efConstruction = settings["ef_construction"]
            made.add(vectors)
        else:
            _fill(made, vectors)
        return Index(self.kind, settings, lambda: made).measured(vectors)


@dataclass(frozen=True)
class Index:
    """A FAISS index of n rows of a segment.

    Args:
        kind: ``hnsw``, ``ivf`` or ``ivfpq``.
        settings: all of its settings.
        load: gives the FAISS index; called when it is first searched.
        recall: recall@10 against the exact search, see ``measured``.
    """

    kind: str
    settings: Mapping[str, int]
    load: Callable[[], faiss.Index]
    recall: float = math.nan

    @cached_property
    def loaded(self) -> faiss.Index:
        """The FAISS index."""
        return self.load()

    def measured(self, vectors: np.ndarray) -> Index:
        """This index with its recall@10, of up to 200 of its own rows as queries (always the same ones).

        The query's own row does not count. A row counts as found if it scores no less than the tenth of the
        exact search.
        """
        rows = Vectors([vectors])
        sample = np.random.default_rng(0).choice(len(rows), min(_SAMPLE, len(rows)), replace=False)
        queries = rows.take(sample)
        hits = 0
        wanted = _TOP + 1  # the query finds itself
        search = self._proposed if self.suits(_TOP, len(rows)) else nearest_rows
        answers = zip(sample, nearest_rows(rows, queries, wanted), search(rows, queries, wanted), strict=True)
        for own, (true, scores), (found, found_scores) in answers:
            last = scores[true != own][:_TOP][-1]
            hits += int((found_scores[found != own][:_TOP] >= last).sum())
        return Index(self.kind, self.settings, self.load, hits / (_TOP * len(sample)))

    def suits(self, top_k: int, available: int) -> bool:
        """Whether the index is worth asking for ``top_k`` of so many rows that may be returned."""
        return self._candidates(top_k) * _EXACT_SHARE < available

    def nearest(
        self, vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
    ) -> Iterator[Found]:
        """As ``nearest_rows``, but of the candidates that the index finds.

        With ``keep`` the index searches as much wider as there are fewer rows to return. A query for which it
        finds fewer than ``top_k`` is answered exactly.
        """
        available = len(vectors) if keep is None else int(keep.sum())
        search = self._proposed if self.suits(top_k, available) else nearest_rows
        yield from search(vectors, queries, top_k, keep)

    def _proposed(
        self, vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
    ) -> Iterator[Found]:
        parameters = self._parameters(self._candidates(top_k), keep)
        rough, candidates = self.loaded.search(queries, self._candidates(top_k), params=parameters)
        whole = candidates.min(axis=1) >= 0
        # what FAISS says of compressed vectors is no bound on anything
        known = None if self.kind == "ivfpq" else rough[whole]
        together = rescored_together(vectors, queries[whole], candidates[whole], top_k, known)
        for query, rows, is_whole in zip(queries, candidates, whole, strict=True):
            rows = rows[rows >= 0]
            if is_whole:
                yield next(together)
            elif len(rows) < top_k:
                yield from nearest_rows(vectors, query[None], top_k, keep)
            else:
                yield rescored(vectors, query, rows, top_k)

    def _candidates(self, top_k: int) -> int:
        return top_k * self.settings.get("refine", 1) + MARGIN

    def _parameters(self, candidates: int, keep: np.ndarray | None) -> faiss.SearchParameters:
        library: Any = faiss  # whose stubs know few of these arguments
        selector, wider = None, 1.0
        if keep is not None:
            bits = np.packbits(keep, bitorder="little")
            selector = library.IDSelectorBitmap(bits)
            wider = len(keep) / keep.sum()
        if self.kind == "hnsw":
            depth = max(candidates, math.ceil(wider * self.settings["ef_search"]))
            return library.SearchParametersHNSW(efSearch=depth, sel=selector)
        lists = min(self.settings["nlist"], math.ceil(wider * self.settings["nprobe"]))
        return library.SearchParametersIVF(nprobe=lists, sel=selector)


def _fill(made: Any, vectors: np.ndarray) -> None:
    """Train an index of lists and put rows into it: no list takes more memory than it needs."""
    most = _TRAINED_ON * made.nlist
    if len(vectors) > most:
        made.train(vectors[np.sort(np.random.default_rng(0).choice(len(vectors), most, replace=False))])
    else:
        made.train(vectors)
    blocks = [vectors[start : start + _BLOCK] for start in range(0, len(vectors), _BLOCK)]
    owners = [made.quantizer.search(block, 1)[1][:, 0] for block in blocks]
    for number, size in enumerate(np.bincount(np.concatenate(owners), minlength=made.nlist)):
        made.invlists.resize(number, int(size))  # a list that grows by itself doubles
        made.invlists.resize(number, 0)  # and one that shrinks keeps its memory
    pointer: Any = faiss.swig_ptr
    for block, lists in zip(blocks, owners, strict=True):
        lists = np.ascontiguousarray(lists)
        made.add_core(len(block), pointer(block), None, pointer(lists))
