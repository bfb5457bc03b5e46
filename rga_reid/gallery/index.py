"""Approximate indexes: FAISS proposes candidates, the stored vectors decide.

An index never scores what is reported: it names candidate rows, whose cosines are then taken exactly from the
float32 vectors (see ``exact``). So an approximate gallery can miss a match, but never misjudges one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import faiss
import numpy as np

from rga_reid.errors import InputError, short_repr
from rga_reid.gallery.validation import non_finite_error

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
class IndexConfig:
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
            raise InputError(f"index: expected {', '.join(SETTINGS)}, got {short_repr(self.kind)}")
        for name, value in self.settings.items():
            if name not in SETTINGS[self.kind]:
                known = ", ".join(SETTINGS[self.kind]) or "none"
                raise InputError(f"index {self.kind}: unknown setting {short_repr(name)} (known: {known})")
            low, high = _SMALLEST.get(name, 1), _LARGEST.get(name, 65_536)
            if type(value) is not int or not low <= value <= high:
                raise InputError(
                    f"{name}: expected a whole number from {low} to {high}, got {short_repr(value)}"
                )

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
        search = self._proposed if self.suits(_TOP, len(rows)) else search_exact
        answers = zip(sample, search_exact(rows, queries, wanted), search(rows, queries, wanted), strict=True)
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
        """As ``search_exact``, but of the candidates that the index finds.

        With ``keep`` the index searches as much wider as there are fewer rows to return. A query for which it
        finds fewer than ``top_k`` is answered exactly.
        """
        available = len(vectors) if keep is None else int(keep.sum())
        search = self._proposed if self.suits(top_k, available) else search_exact
        yield from search(vectors, queries, top_k, keep)

    def _proposed(
        self, vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
    ) -> Iterator[Found]:
        parameters = self._parameters(self._candidates(top_k), keep)
        rough, candidates = self.loaded.search(queries, self._candidates(top_k), params=parameters)
        whole = candidates.min(axis=1) >= 0
        # what FAISS says of compressed vectors is no bound on anything
        known = None if self.kind == "ivfpq" else rough[whole]
        together = rescore_batch(vectors, queries[whole], candidates[whole], top_k, known)
        for query, rows, is_whole in zip(queries, candidates, whole, strict=True):
            rows = rows[rows >= 0]
            if is_whole:
                yield next(together)
            elif len(rows) < top_k:
                yield from search_exact(vectors, query[None], top_k, keep)
            else:
                yield rescore(vectors, query, rows, top_k)

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


Found = tuple[np.ndarray, np.ndarray]  #: row numbers (int64) and scores (float64), best first

MARGIN = 32  #: candidates beyond the wanted ones: enough to spare nearly every query the second search
_SEARCH_BLOCK = 4096  # rows scored at a time
_MOST_ON_GPU = 2048  # rows that FAISS can select there


def search_exact(
    vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
) -> Iterator[Found]:
    """The rows that score highest, for each query.

    Args:
        vectors: unit rows, ``(n, d)``.
        queries: unit rows, float32 ``(q, d)``.
        top_k: rows wanted, at least 1.
        keep: bool ``(n,)``, rows that may be returned; all by default.

    Yields:
        For each query: row numbers (int64) and scores (float64 dot products of the float32 rows), best first,
        ties in row order. Fewer than ``top_k`` where there are no more.
    """
    available = len(vectors) if keep is None else int(keep.sum())
    wanted = min(top_k, available)
    if wanted == 0:
        for _ in queries:
            yield np.empty(0, np.int64), np.empty(0)
        return
    candidates = min(wanted + MARGIN, available)
    filtered, rows = _filter(vectors, queries, candidates, keep)
    error = rounding_error(queries.shape[1])
    best = rescore_batch(vectors, queries, rows, wanted, filtered)
    for number, (query, (found, scores)) in enumerate(zip(queries, best, strict=True)):
        if candidates < available and scores[-1] <= filtered[number].min() + error:
            # a row that the filter left out may tie with the last one, or beat it
            radius = scores[-1] - 2 * error
            near = [numbers[block @ query >= radius] for numbers, block in vectors.blocks(keep)]
            found, scores = rescore(vectors, query, np.concatenate(near), wanted)
        yield found, scores


def rescore(vectors: Vectors, query: np.ndarray, rows: np.ndarray, wanted: int) -> Found:
    """The best of some rows by their exact scores.

    Args:
        vectors: unit rows, ``(n, d)``.
        query: unit row, float32 ``(d,)``.
        rows: candidates in any order, without duplicates.
        wanted: how many to return at most.
    """
    rows = np.sort(rows)
    exact = query.astype(np.float64)
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _SEARCH_BLOCK):
        block = vectors.take(rows[start : start + _SEARCH_BLOCK])
        scores[start : start + _SEARCH_BLOCK] = (block * exact).sum(
            axis=1
        )  # row by row: equal rows score equally
    order = np.argsort(-scores, kind="stable")[:wanted]
    return rows[order], scores[order]


def rescore_batch(
    vectors: Vectors, queries: np.ndarray, rows: np.ndarray, wanted: int, rough: np.ndarray | None = None
) -> Iterator[Found]:
    """As ``rescored``, for queries with as many candidates each: many at a time.

    A float32 product says which candidates can be among the best by the bound on its rounding: only those are
    scored in float64.

    Args:
        vectors: unit rows, ``(n, d)``.
        queries: unit rows, float32 ``(q, d)``.
        rows: int64 ``(q, c)``, candidates of each in any order, without duplicates; c at least ``wanted``.
        wanted: how many to return of each.
        rough: float32 ``(q, c)``, their dot products, summed in any order; taken here by default.
    """
    by_row = np.argsort(rows, axis=1)
    rows = np.take_along_axis(rows, by_row, axis=1)
    rough = vectors.products(queries, rows) if rough is None else np.take_along_axis(rough, by_row, axis=1)
    last = -np.partition(-rough, wanted - 1, axis=1)[:, wanted - 1 : wanted]
    owner, place = np.nonzero(rough >= last - 2 * rounding_error(queries.shape[1]))
    scores = np.full(rows.shape, -np.inf)
    for start in range(0, len(owner), _SEARCH_BLOCK):
        mine, there = owner[start : start + _SEARCH_BLOCK], place[start : start + _SEARCH_BLOCK]
        block = vectors.take(rows[mine, there])
        scores[mine, there] = (block * queries[mine].astype(np.float64)).sum(axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
    found, best = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
    yield from zip(found, best, strict=True)


def rounding_error(dimension: int) -> float:
    """Bound on the error of a float32 dot product of two unit vectors, for any order of summation.

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, equation (3.5): d·u / (1 − d·u) times
    Σ|xᵢyᵢ|, which is at most 1; u = 2⁻²⁴.
    """
    return 1.01 * dimension * 2.0**-24


def _highest(queries: np.ndarray, block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's search: on a GPU where its package (faiss-gpu) and the machine have one."""
    product = faiss.METRIC_INNER_PRODUCT
    if faiss.get_num_gpus() and count <= _MOST_ON_GPU:
        return faiss.knn_gpu(_gpu(), queries, block, count, metric=product)
    return faiss.knn(queries, block, count, metric=product)


@cache
def _gpu() -> Any:
    return faiss.StandardGpuResources()  # of faiss-gpu only


def _filter(
    vectors: Vectors, queries: np.ndarray, candidates: int, keep: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows by float32 scores, in no order: scores and row numbers, ``(q, candidates)`` each."""
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for numbers, block in vectors.blocks(keep):
        scores, found = _highest(queries, block, min(candidates, len(block)))
        if (found < 0).any():  # FAISS ranks no NaN
            raise non_finite_error()
        best = np.concatenate([best, scores], axis=1)
        rows = np.concatenate([rows, numbers[found]], axis=1)
        if best.shape[1] > candidates:
            order = np.argpartition(-best, candidates - 1, axis=1)[:, :candidates]
            best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return best, rows


_BLOCK_BYTES = 1 << 26  # of float32 scanned at a time: large enough for BLAS, small beside a gallery


class Blocks(Protocol):
    """A matrix ``(n, d)`` whose rows come some at a time."""

    @property
    def dimension(self) -> int:
        """d."""

    def blocks(self, keep: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As ``Vectors.blocks``."""


class Vectors:
    """A matrix ``(n, d)`` in parts, which may be memory-mapped files: nothing is copied to join them.

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
        """All rows in order, some at a time.

        Args:
            keep: bool ``(n,)``, rows to give; all by default.

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
        """The rows from ``start`` to ``stop``; nothing is copied."""
        cuts = zip(self._starts, self._parts, strict=False)
        parts = [part[max(start - first, 0) : max(stop - first, 0)] for first, part in cuts]
        return Vectors([part for part in parts if len(part)])

    def products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Float32 dot products of queries and some rows of each, which are not copied.

        Args:
            queries: float32 ``(q, d)``.
            rows: int64 ``(q, c)``.

        Returns:
            ``(q, c)``, each summed in an order of FAISS's own.
        """
        library: Any = faiss  # whose stubs do not know this function
        pointer, queries = library.swig_ptr, np.ascontiguousarray(queries)
        products = np.zeros(rows.shape, np.float32)
        for start, part in zip(self._starts, self._parts, strict=False):
            inside = (rows >= start) & (rows < start + len(part))
            if inside.any():
                local = np.where(inside, rows - start, 0)
                here, part = np.empty_like(products), np.ascontiguousarray(part)
                arrays = (pointer(array) for array in (here, queries, part, local))
                library.fvec_inner_products_by_idx(*arrays, queries.shape[1], *rows.shape)
                np.copyto(products, here, where=inside)
        return products

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies of some rows, float32 ``(len(rows), d)``, in the order asked for."""
        if len(self._parts) == 1:
            return self._parts[0][rows]
        taken = np.empty((len(rows), self._parts[0].shape[1]), np.float32)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            taken[mine] = self._parts[owner][rows[mine] - self._starts[owner]]
        return taken
