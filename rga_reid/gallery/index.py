"""Exact search, and approximate indexes: FAISS proposes candidates, the stored vectors decide.

An index never computes reported scores: it names candidate rows, whose cosines are then computed exactly from the
float32 vectors. So an approximate gallery can miss a match, but its scores are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from rga_reid.errors import InputError, check_int, short_repr
from rga_reid.evaluation.similarity import product_error, use_full_precision
from rga_reid.evaluation.topk import TopK
from rga_reid.gallery.validation import non_finite_error

#: Settings of each kind. ``flat`` is exact search, and has none.
SETTINGS: dict[str, tuple[str, ...]] = {
    "flat": (),
    "hnsw": ("hnsw_m", "ef_construction", "ef_search"),
    "ivf": ("nlist", "nprobe"),
    "ivfpq": ("nlist", "nprobe", "pq_m", "pq_bits", "refine"),
}
MIN_ROWS = 1024  #: fewer rows are searched exactly: an index would be slower, and approximate
MAX_EXACT = (
    16_384  #: rows that a filter leaves are compared exactly up to this number: the index would be slower
)
MARGIN = 32  #: candidates in addition to those wanted

Found = tuple[np.ndarray, np.ndarray]  #: row numbers (int64) and scores (float64), best first

_FACTORY = {
    "hnsw": "HNSW{hnsw_m},Flat",
    "ivf": "IVF{nlist},Flat",
    "ivfpq": "IVF{nlist},PQ{pq_m}x{pq_bits}np",
}
_MAX = {"hnsw_m": 256, "pq_bits": 8, "refine": 1024}  # of the other settings: 65,536
_MIN = {"hnsw_m": 2, "pq_bits": 4}  # of the other settings: 1
_PER_CENTROID = 39  # training rows that FAISS asks for, for each centroid of its k-means
_TRAINING_ROWS = 64  # for each list, at most: more cost time and memory, and change little
_FILL_BLOCK = 65_536  # rows put into lists at a time
_EXACT_SHARE = 10  # search exactly where candidates are more than a tenth of the rows
_SAMPLE, _TOP = 200, 10  # recall is measured with this many queries, at this rank

_BLOCK_BYTES = 1 << 26  # of vectors scanned at a time: large enough for BLAS, small beside a gallery
_QUERIES = 256  # scored at a time
_PAIRS = 4096  # scored exactly at a time
_MIN_GPU_QUERIES = 16  # copying the vectors to a GPU pays for as many


@dataclass(frozen=True)
class IndexConfig:
    """The kind of index of a gallery, and the settings that replace automatic ones.

    Args:
        kind: ``flat``, ``hnsw``, ``ivf`` or ``ivfpq``.
        settings: whole numbers, named as in ``SETTINGS``.

    Raises:
        InputError: an unknown kind or setting, a value out of range.
    """

    kind: str = "flat"
    settings: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in SETTINGS:
            raise InputError(f"index: expected {', '.join(SETTINGS)}, got {short_repr(self.kind)}")
        for name, value in self.settings.items():
            if name not in SETTINGS[self.kind]:
                known = ", ".join(SETTINGS[self.kind]) or "none"
                raise InputError(f"index {self.kind}: unknown setting {short_repr(name)} (known: {known})")
            low, high = _MIN.get(name, 1), _MAX.get(name, 65_536)
            if type(value) is not int:  # not a NumPy number: settings are written as JSON
                raise InputError(
                    f"{name}: expected a whole number from {low} to {high}, got {short_repr(value)}"
                )
            check_int(name, value, low, high)

    def check_dimension(self, dimension: int) -> None:
        """Refuse settings that do not fit the length of the features.

        Raises:
            InputError: ``pq_m`` does not divide the dimension.
        """
        parts = self.settings.get("pq_m", 1)
        if dimension % parts:
            raise InputError(f"pq_m: expected a divisor of the dimension {dimension}, got {parts}")

    def resolve(self, rows: int, dimension: int) -> dict[str, int]:
        """Return all settings of an index of so many rows: those given, the others by its size.

        Lists and codebooks are never larger than the rows can train (39 for each centroid).
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
        """Build an index of unit rows and measure its recall; None where exact search is better.

        Args:
            vectors: float32 ``(n, d)``.
        """
        count, dimension = vectors.shape
        if self.kind == "flat" or count < MIN_ROWS:
            return None
        settings = self.resolve(count, dimension)
        index: Any = faiss.index_factory(
            dimension, _FACTORY[self.kind].format(**settings), faiss.METRIC_INNER_PRODUCT
        )
        if self.kind == "hnsw":
            index.hnsw.efConstruction = settings["ef_construction"]
            index.add(vectors)
        else:
            _fill(index, vectors)
        return Index(self.kind, settings, lambda: index).with_recall(vectors)


@dataclass(frozen=True)
class Index:
    """A FAISS index of n rows of a segment.

    Args:
        kind: ``hnsw``, ``ivf`` or ``ivfpq``.
        settings: all of its settings.
        load: returns the FAISS index; called at the first search.
        recall: recall@10 against exact search, see ``with_recall``.
    """

    kind: str
    settings: Mapping[str, int]
    load: Callable[[], faiss.Index]
    recall: float = math.nan

    @cached_property
    def loaded(self) -> faiss.Index:
        """The FAISS index."""
        return self.load()

    def with_recall(self, vectors: np.ndarray) -> Index:
        """Return this index with its recall@10, measured with up to 200 of its rows as queries.

        The rows are always the same ones. The query's own row does not count. A row counts as found if its
        score is at least that of the tenth row of exact search.
        """
        rows = Vectors([vectors])
        sample = np.random.default_rng(0).choice(len(rows), min(_SAMPLE, len(rows)), replace=False)
        queries = rows.take(sample)
        hits = 0
        wanted = _TOP + 1  # the query finds itself
        search = self._search if self.is_worthwhile(_TOP, len(rows)) else search_exact
        answers = zip(sample, search_exact(rows, queries, wanted), search(rows, queries, wanted), strict=True)
        for own, (true, scores), (found, found_scores) in answers:
            last = scores[true != own][:_TOP][-1]
            hits += int((found_scores[found != own][:_TOP] >= last).sum())
        return Index(self.kind, self.settings, self.load, hits / (_TOP * len(sample)))

    def is_worthwhile(self, top_k: int, available: int) -> bool:
        """Return whether the index is faster than exact search for ``top_k`` of so many rows."""
        return self._candidates(top_k) * _EXACT_SHARE < available

    def nearest(
        self, vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
    ) -> Iterator[Found]:
        """Like ``search_exact``, but among the candidates that the index finds.

        With ``keep`` the index searches more widely, the more so the fewer rows may be returned; among
        ``MAX_EXACT`` and fewer the search is exact. A query for which it finds fewer than ``top_k`` is answered
        exactly.
        """
        available = len(vectors) if keep is None else int(keep.sum())
        few = keep is not None and available <= MAX_EXACT
        search = self._search if self.is_worthwhile(top_k, available) and not few else search_exact
        yield from search(vectors, queries, top_k, keep)

    def _search(
        self, vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
    ) -> Iterator[Found]:
        count = self._candidates(top_k)
        products, candidates = self.loaded.search(queries, count, params=self._parameters(count, keep))
        # products with compressed vectors say nothing about the exact scores
        known = None if self.kind == "ivfpq" else products
        for number, (rows, scores) in enumerate(rescore_batch(vectors, queries, candidates, top_k, known)):
            if len(rows) < top_k:
                yield from search_exact(vectors, queries[number : number + 1], top_k, keep)
            else:
                yield rows, scores

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


def _fill(index: Any, vectors: np.ndarray) -> None:
    """Train an index of lists and add rows to it, so that no list takes more memory than it needs."""
    limit = _TRAINING_ROWS * index.nlist
    if len(vectors) > limit:
        index.train(vectors[np.sort(np.random.default_rng(0).choice(len(vectors), limit, replace=False))])
    else:
        index.train(vectors)
    blocks = [vectors[start : start + _FILL_BLOCK] for start in range(0, len(vectors), _FILL_BLOCK)]
    owners = [index.quantizer.search(block, 1)[1][:, 0] for block in blocks]
    for number, size in enumerate(np.bincount(np.concatenate(owners), minlength=index.nlist)):
        index.invlists.resize(number, int(size))  # a list that grows by itself doubles
        index.invlists.resize(number, 0)  # and one that shrinks keeps its memory
    pointer: Any = faiss.swig_ptr
    for block, lists in zip(blocks, owners, strict=True):
        lists = np.ascontiguousarray(lists)
        index.add_core(len(block), pointer(block), None, pointer(lists))


def search_exact(
    vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
) -> Iterator[Found]:
    """Yield the rows that score highest, for each query.

    Args:
        vectors: unit rows, ``(n, d)``.
        queries: unit rows, float32 ``(q, d)``.
        top_k: rows wanted, at least 1.
        keep: bool ``(n,)``, rows that may be returned; all by default.

    Yields:
        For each query: row numbers (int64) and scores (float64 dot products of the float32 rows), best first,
        equal scores in row order. Fewer than ``top_k`` where there are no more.
    """
    allowed = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)
    if not len(allowed) or not len(queries):
        yield from ((np.empty(0, np.int64), np.empty(0)) for _ in queries)
        return
    gpu = len(queries) >= _MIN_GPU_QUERIES and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")

    def exact(query: np.ndarray, column: np.ndarray) -> np.ndarray:
        return _exact_scores(vectors, queries, query, allowed[column])

    error = product_error(queries.shape[1], torch.float32)
    best = TopK(len(queries), min(top_k, len(allowed)), error, exact)
    column = 0
    with use_full_precision(device):
        for rows, block in vectors.blocks(keep):
            for first in range(0, len(queries), _QUERIES):
                tile = _products(queries[first : first + _QUERIES], block, device)
                if not torch.isfinite(tile.sum()):
                    raise non_finite_error()
                if column == 0:
                    best.raise_threshold(tile, first)
                best.add(tile, first, column)
            column += len(rows)
    for columns, scores in best.results():
        yield allowed[columns], scores


def _products(queries: np.ndarray, block: np.ndarray, device: torch.device) -> Tensor:
    """Return the float32 dot products of all pairs."""
    if device.type == "cpu":
        return torch.from_numpy(queries @ block.T)
    left, right = (torch.tensor(rows).to(device) for rows in (queries, block))
    return left @ right.T


def rescore_batch(
    vectors: Vectors,
    queries: np.ndarray,
    candidates: np.ndarray,
    wanted: int,
    products: np.ndarray | None = None,
) -> list[Found]:
    """Return the best of some candidates of each query by their exact scores.

    Args:
        vectors: unit rows, ``(n, d)``.
        queries: unit rows, float32 ``(q, d)``.
        candidates: int64 ``(q, c)``, row numbers without duplicates, negative where there are fewer.
        wanted: how many to return for each query, at most.
        products: float32 ``(q, c)``, dot products summed in any order, if they are known.
    """
    if products is None:
        products = np.empty(candidates.shape, np.float32)
        for number, (query, rows) in enumerate(zip(queries, candidates, strict=True)):
            products[number] = vectors.take(np.maximum(rows, 0)) @ query

    def exact(query: np.ndarray, row: np.ndarray) -> np.ndarray:
        return _exact_scores(vectors, queries, query, row)

    best = TopK(len(queries), wanted, product_error(queries.shape[1], torch.float32), exact)
    found = candidates >= 0
    best.add_entries(np.nonzero(found)[0], candidates[found], products[found])
    return best.results()


def _exact_scores(vectors: Vectors, queries: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return float64 dot products of pairs. Each is summed in the same order, so equal rows score equally."""
    scores = np.empty(len(row))
    for start in range(0, len(row), _PAIRS):
        part = slice(start, start + _PAIRS)
        scores[part] = (vectors.take(row[part]) * queries[query[part]].astype(np.float64)).sum(axis=1)
    return scores


class Vectors:
    """A matrix ``(n, d)`` in parts, which may be memory-mapped files and are not copied.

    Args:
        parts: float32 ``(n_i, d)`` each, in the order of the rows.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def dimension(self) -> int:
        """d."""
        return self._parts[0].shape[1]

    def blocks(self, keep: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all rows in order, a block at a time.

        Args:
            keep: bool ``(n,)``, rows to yield; all by default.

        Yields:
            Row numbers (int64) and their vectors; never an empty block.
        """
        for start, part in zip(self._starts, self._parts, strict=False):  # the last start is the end
            step = max(1, _BLOCK_BYTES // (part.shape[1] * part.itemsize))
            for first in range(0, len(part), step):
                block = part[first : first + step]
                rows = np.arange(start + first, start + first + len(block))
                if keep is not None:
                    kept = keep[rows[0] : rows[-1] + 1]
                    rows, block = rows[kept], block[kept]
                if len(rows):
                    yield rows, block

    def span(self, start: int, stop: int) -> Vectors:
        """Return the rows from ``start`` to ``stop``, without copying."""
        cuts = zip(self._starts, self._parts, strict=False)
        parts = [part[max(start - first, 0) : max(stop - first, 0)] for first, part in cuts]
        return Vectors([part for part in parts if len(part)])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return copies of some rows, float32 ``(len(rows), d)``, in the order of their numbers given."""
        if len(self._parts) == 1:
            return self._parts[0][rows]
        taken = np.empty((len(rows), self._parts[0].shape[1]), np.float32)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            taken[mine] = self._parts[owner][rows[mine] - self._starts[owner]]
        return taken
