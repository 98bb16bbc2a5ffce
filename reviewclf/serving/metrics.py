"""Figures for Prometheus, which add up over the processes of a server.

Where ``PROMETHEUS_MULTIPROC_DIR`` names a folder, Prometheus's library keeps the values of each process in files there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from reviewclf.serving.model import ServedModel

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_INFO = ("version", "candidate", "kind", "gate", "source")
_PAIR = ("champion", "challenger")


class Metrics:
    """All figures of one process; names begin with ``reviewclf_``. Each object has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"reviewclf_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"reviewclf_{name}", about, labels, buckets=buckets, registry=self.registry)

        def gauge(name: str, about: str, mode: str, *labels: str) -> Gauge:
            """`mode` says how the values of several processes become one; those of ended processes do not count."""
            return Gauge(f"reviewclf_{name}", about, labels, multiprocess_mode=mode, registry=self.registry)  # type: ignore[arg-type]

        # Counters by labels are looked up at each request; Prometheus's library takes longer for it than to count.
        self._requests = cache(counter("requests", "Requests.", "path", "status").labels)
        self._seconds = cache(histogram("request_seconds", "Seconds of a request.", _SECONDS, "path").labels)
        self._errors = counter("errors", "Requests that ended in an error, by its code.", "code")
        self.in_flight = gauge("requests_in_flight", "Requests being answered.", "livesum")
        self.request_texts = histogram("request_texts", "Texts of a request.", _TEXTS)
        self.batch_texts = histogram("batch_texts", "Texts that went through the model together.", _TEXTS)
        self.batch_seconds = histogram("batch_seconds", "Seconds of a batch in the model.", _SECONDS)
        self.queue_texts = gauge("queue_texts", "Texts that wait for the model.", "livesum")
        self.queue_seconds = histogram("queue_seconds", "Seconds that a request waited for the model.", _SECONDS)
        self._predictions = cache(counter("predictions", "Answers by label.", "label", "version").labels)
        self._confidence = cache(histogram("confidence", "Probability of the answered label.", _CONFIDENCE, "version").labels)
        gauge("workers", "Processes that answer.", "livesum").set(1)
        self._model = gauge("model_info", "Processes that answer with this version.", "livesum", *_INFO)
        self._loaded = gauge("model_loaded_timestamp_seconds", "When the version that answers was loaded.", "livemax")
        self._swaps = counter("model_swaps", "Times that another version began to answer, counted by each worker.")
        self._refused = counter("model_refused", "Attempts to load a version that failed.", "alias", "version")
        self._reachable = gauge("registry_up", "1 when the last look found the registry.", "livemin")
        self._contact = gauge("registry_contact_timestamp_seconds", "When the registry last answered.", "livemax")
        self.shadow_compared = counter("shadow_compared", "Texts that both champion and challenger answered.", *_PAIR)
        self.shadow_disagreements = counter(
            "shadow_disagreements", "Texts on which they disagree.", *_PAIR, "champion_label", "challenger_label"
        )
        self.shadow_skipped = counter(
            "shadow_skipped", "Texts that the challenger did not answer: no room (busy), or it failed (failed).", "why"
        )
        self._answering: tuple[str, ...] | None = None

    def request(self, path: str, status: int, seconds: float, code: str | None) -> None:
        """Count one finished request; `path` is a route, never what a client wrote, `code` that of an error."""
        self._requests(path, status).inc()
        self._seconds(path).observe(seconds)
        if code is not None:
            self._errors.labels(code).inc()

    def answered(self, version: str, labels: Sequence[str], confidences: Sequence[float]) -> None:
        """Count labels and confidences of one request."""
        for label, confidence in zip(labels, confidences, strict=True):
            self._predictions(label, version).inc()
            self._confidence(version).observe(confidence)

    def swapped(self, model: ServedModel) -> None:
        """Another version answers."""
        if self._answering is not None:
            self._model.labels(*self._answering).set(0)
        tags = model.info.tags
        candidate, gate = tags.get("reviewclf.candidate", ""), tags.get("reviewclf.gate", "")
        self._answering = (model.version, candidate, model.kind, gate, model.loaded_from)
        self._model.labels(*self._answering).set(1)
        self._loaded.set(model.loaded_at.timestamp())
        self._swaps.inc()

    def refused(self, alias: str, version: str) -> None:
        """A version could not be used."""
        self._refused.labels(alias, version).inc()

    def looked(self, *, reachable: bool, contact: datetime | None) -> None:
        """What the last look at the registry found."""
        self._reachable.set(reachable)
        if contact is not None:
            self._contact.set(contact.timestamp())

    def collect(self) -> Iterable[Metric]:
        """The figures of all processes of the server."""
        folder = os.environ.get(MULTIPROCESS_FOLDER)
        if folder is None:
            return self.registry.collect()
        _forget_ended_processes(Path(folder))
        found: Iterable[Metric] = MultiProcessCollector(None, folder).collect()  # type: ignore[no-untyped-call]
        return found

    def total(self, counter: Counter, **labels: str) -> int:
        """What a counter has come to in all processes, over all its children with these labels."""
        return sum(
            int(sample.value)
            for family in self.collect()
            for sample in family.samples
            if sample.name == f"{counter._name}_total" and labels.items() <= sample.labels.items()
        )

    def render(self) -> bytes:
        """All figures as Prometheus reads them."""
        registry = CollectorRegistry()
        registry.register(self)
        registry.register(_ServerProcesses())
        return generate_latest(registry)


class _ServerProcesses(Collector):
    """Memory and processor time of the whole server: Prometheus's library knows of one process only."""

    def collect(self) -> Iterator[Metric]:
        server = psutil.Process(os.getppid() if MULTIPROCESS_FOLDER in os.environ else None)
        memory, seconds = 0, 0.0
        for process in (server, *server.children(recursive=True)):
            try:
                memory += process.memory_info().rss
                seconds += sum(process.cpu_times()[:4])  # with that of children that have ended
            except psutil.NoSuchProcess:
                continue
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory of the server's processes.", memory)
        yield CounterMetricFamily("process_cpu_seconds", "Processor time of the server's processes.", seconds)


def _forget_ended_processes(folder: Path) -> None:
    """Take the gauges of processes that have ended out of the sums; their counters stay."""
    for path in folder.glob("gauge_live*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
