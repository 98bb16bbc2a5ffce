"""Figures for Prometheus. Each application has a registry of its own, so that two in one process do not add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

if TYPE_CHECKING:
    from reviewclf.serving.served import ServedModel

M = TypeVar("M", Counter, Histogram)
# What another process has counted, a sample a row: name and kind of the figure, name of the sample, labels, value.
Snapshot = list[tuple[str, str, str, dict[str, str], float]]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_INFO = ("version", "candidate", "kind", "gate", "source")


class Metrics:
    """All figures of one process; names begin with ``reviewclf_``.

    Parameters
    ----------
    process : bool
        Whether what Prometheus's library knows about the process (memory, open files) is among them.
    """

    def __init__(self, *, process: bool = True) -> None:
        registry = self.collectors = CollectorRegistry()
        self._children: dict[tuple[int, tuple[str, ...]], Counter | Histogram] = {}
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR) if process else ():
            registry.register(collector)
        self._requests = Counter("reviewclf_requests", "Requests.", ("path", "status"), registry=registry)
        self._seconds = Histogram(
            "reviewclf_request_seconds", "Seconds of a request.", ("path",), buckets=_SECONDS, registry=registry
        )
        self._errors = Counter(
            "reviewclf_errors", "Requests that ended in an error, by its code.", ("code",), registry=registry
        )
        self.in_flight = Gauge("reviewclf_requests_in_flight", "Requests being answered.", registry=registry)
        self.request_texts = Histogram("reviewclf_request_texts", "Texts of a request.", buckets=_TEXTS, registry=registry)
        self.batch_texts = Histogram(
            "reviewclf_batch_texts", "Texts that went through the model together.", buckets=_TEXTS, registry=registry
        )
        self.batch_seconds = Histogram(
            "reviewclf_batch_seconds", "Seconds of a batch in the model.", buckets=_SECONDS, registry=registry
        )
        self.queue_texts = Gauge("reviewclf_queue_texts", "Texts that wait for the model.", registry=registry)
        self.queue_seconds = Histogram(
            "reviewclf_queue_seconds", "Seconds that a request waited for the model.", buckets=_SECONDS, registry=registry
        )
        self._predictions = Counter("reviewclf_predictions", "Answers by label.", ("label", "version"), registry=registry)
        self._confidence = Histogram(
            "reviewclf_confidence", "Probability of the answered label.", ("version",), buckets=_CONFIDENCE, registry=registry
        )
        self._model = Gauge("reviewclf_model_info", "1 for the version that answers.", _INFO, registry=registry)
        self._loaded = Gauge("reviewclf_model_loaded_timestamp_seconds", "When it was loaded.", registry=registry)
        self._swaps = Counter("reviewclf_model_swaps", "Times that another version began to answer.", registry=registry)
        self._refused = Counter(
            "reviewclf_model_refused", "Attempts to load a version that failed.", ("alias", "version"), registry=registry
        )
        self._reachable = Gauge("reviewclf_registry_up", "1 when the last look found the registry.", registry=registry)
        self._contact = Gauge(
            "reviewclf_registry_contact_timestamp_seconds", "When the registry last answered.", registry=registry
        )
        pair = ("champion", "challenger")
        self.shadow_compared = Counter(
            "reviewclf_shadow_compared", "Texts that both champion and challenger answered.", pair, registry=registry
        )
        self.shadow_disagreements = Counter(
            "reviewclf_shadow_disagreements",
            "Texts on which they disagree.",
            (*pair, "champion_label", "challenger_label"),
            registry=registry,
        )
        self.shadow_rate = Gauge(
            "reviewclf_shadow_disagreement_rate", "Share of texts on which they disagree.", pair, registry=registry
        )
        self.shadow_skipped = Counter(
            "reviewclf_shadow_skipped",
            "Texts that the challenger did not answer: no room (busy), or it failed (failed).",
            ("why",),
            registry=registry,
        )

    def _of(self, metric: M, *labels: str) -> M:
        """The child of a metric for these labels, which the metric itself would look up behind a lock each time."""
        key = (id(metric), labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child  # type: ignore[return-value]

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one finished request; `path` is a route, never what a client wrote."""
        self._of(self._requests, path, str(status)).inc()
        self._of(self._seconds, path).observe(seconds)

    def error(self, code: str) -> None:
        """Count an error by its code."""
        self._errors.labels(code).inc()

    def answered(self, version: str, labels: Sequence[str], confidences: Sequence[float]) -> None:
        """Count labels and confidences of one request."""
        observe = self._of(self._confidence, version).observe
        for label, confidence in zip(labels, confidences, strict=True):
            self._of(self._predictions, label, version).inc()
            observe(confidence)

    def swapped(self, model: ServedModel) -> None:
        """Another version answers."""
        tags = model.info.tags
        self._model.clear()
        self._model.labels(
            model.version,
            tags.get("reviewclf.candidate", ""),
            model.kind,
            tags.get("reviewclf.gate", ""),
            model.loaded_from,
        ).set(1)
        self._loaded.set(model.loaded_at.timestamp())
        self._swaps.inc()

    def refused(self, alias: str, version: str) -> None:
        """A version could not be used."""
        self._refused.labels(alias, version).inc()

    def registry(self, *, reachable: bool, contact: datetime | None) -> None:
        """What the last look at the registry found."""
        self._reachable.set(reachable)
        if contact is not None:
            self._contact.set(contact.timestamp())

    def snapshot(self) -> Snapshot:
        """All figures for another process, which may be sent as JSON."""
        return [
            (family.name, family.type, sample.name, sample.labels, sample.value)
            for family in self.collectors.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]

    def render(self, others: Sequence[Snapshot] = ()) -> bytes:
        """All figures as Prometheus reads them, with what `others` have counted added."""
        return generate_latest(_Sums(self.collectors, others))


class _Sums:
    """A registry with the figures of several processes added up."""

    def __init__(self, registry: CollectorRegistry, others: Iterable[Snapshot]) -> None:
        self._registry = registry
        self._others: dict[str, Snapshot] = {}
        for row in add_up(others):
            self._others.setdefault(row[0], []).append(row)

    def collect(self) -> Iterator[Any]:
        """What :func:`prometheus_client.generate_latest` asks a registry for."""
        for family in self._registry.collect():
            left = {_key(name, labels): value for _, _, name, labels, value in self._others.get(family.name, ())}
            family.samples = [
                sample._replace(value=sample.value + left.pop(_key(sample.name, sample.labels), 0.0))
                for sample in family.samples
            ]
            for (name, labels), value in left.items():
                family.add_sample(name, dict(labels), value)
            yield family


def add_up(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot with the values of several added up."""
    sums: dict[tuple[str, str, tuple[str, tuple[tuple[str, str], ...]]], float] = {}
    for snapshot in snapshots:
        for family, kind, name, labels, value in snapshot:
            row = (family, kind, _key(name, labels))
            sums[row] = sums.get(row, 0.0) + value
    return [(family, kind, name, dict(labels), value) for (family, kind, (name, labels)), value in sums.items()]


def _key(name: str, labels: Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))
