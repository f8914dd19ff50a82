"""What a server tells Prometheus: requests as they end, and the engine as it is when asked."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from muladd.llm.serve.engine import Engine

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(engine))
        self._requests = Counter("muladd_requests", "Requests by path and status.",
                                 ["path", "status"], registry=self._registry)  # fmt: skip
        self._seconds = Histogram("muladd_request_seconds", "Time to the end of an answer.",
                                  ["path"], buckets=_SECONDS, registry=self._registry)  # fmt: skip
        self._first = Histogram("muladd_first_token_seconds", "Time to the first part of a stream.",
                                buckets=_SECONDS, registry=self._registry)  # fmt: skip

    def done(self, path: str, status: int, seconds: float) -> None:
        """A request has been answered (499: its client had gone)."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first(self, seconds: float) -> None:
        """A stream has begun."""
        self._first.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry)


class _Engine:
    """Reads the engine when Prometheus asks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Any]:
        e, t = self.engine, self.engine.totals
        gauges = {
            "running": ("Jobs that are read or written now.", e.running),
            "waiting": ("Jobs that wait for a slot.", e.waiting),
            "pages": ("Pages of keys and values that there are.", e.sharing.count),
            "pages_held": ("Pages that jobs hold.", e.sharing.held),
        }
        counts = {
            "prompt_tokens": ("Tokens of prompts.", t.prompt_tokens),
            "cached_tokens": ("Those of them that were there already.", t.cached_tokens),
            "answer_tokens": ("Tokens written.", t.answer_tokens),
            "steps": ("Runs of the model.", t.steps),
            "preempted": ("Jobs whose pages older ones needed.", t.preempted),
            "cancelled": ("Jobs whose clients went.", t.cancelled),
            "failed": ("Jobs that failed inside.", t.failed),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"muladd_{name}", text, value)
        for name, (text, value) in counts.items():
            yield CounterMetricFamily(f"muladd_{name}", text, value)
