"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rga_reid_requests", "Requests.", ("method", "route", "status"), registry=self._registry
        )
        self._latency = Histogram(
            "rga_reid_request_seconds",
            "Time to answer.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "rga_reid_batch_rows",
            "Images, queries or changes that were processed together.",
            ("stage",),
            buckets=_ROWS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "rga_reid_waiting_rows",
            "Images, queries or changes that wait.",
            ("stage",),
            registry=self._registry,
        )
        self._images = Gauge("rga_reid_gallery_images", "Images in the gallery.", registry=self._registry)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; ``route`` is its template, without ids."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def batches(self, stage: str) -> Callable[[int], None]:
        """Return the function that counts batches of a stage: embed, search or write."""
        return self._batches.labels(stage).observe

    def watch(self, stage: str, waiting: Callable[[], float]) -> None:
        """Read the length of a queue whenever metrics are read."""
        self._waiting.labels(stage).set_function(waiting)

    def watch_images(self, images: Callable[[], float]) -> None:
        """Read the size of the gallery whenever metrics are read."""
        self._images.set_function(images)

    def text(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
