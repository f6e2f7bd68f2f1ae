"""What /metrics tells, in vLLM's names, so that dashboards and load tools that know vLLM know this server.

Times of the names `vllm:` are those of the wall clock, as a client sees them; `systolith:chip_*` are the chip's own.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from systolith.runtime.engine import EngineStats

__all__ = ["Metrics", "RequestClock"]

_WALL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1000)
_CHIP_S = tuple(m * 10.0**e for e in range(-6, 2) for m in (1, 2.5, 5))
_LABELS = ("model_name", "engine")


class Metrics:
    """The server's own registry: nothing of the process's other users is in it."""

    def __init__(self, model: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # moments of creation, which nobody scrapes
        self.registry = CollectorRegistry()
        self._values = (model, "0")
        self._last: EngineStats | None = None
        self.running = self._gauge("vllm:num_requests_running", "Requests in slots of the chip.")
        self.waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait for a slot or for pages.")
        self.kv_usage = self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache's pages in use, 0..1.")
        self.prefix_queries = self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in shared pages.")
        self.prefix_hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens found in shared pages.")
        self.preemptions = self._counter("vllm:num_preemptions", "Requests put back to wait for pages.")
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of requests taken.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens made.")
        self.success = Counter(
            "vllm:request_success", "Answers that came to their end.", (*_LABELS, "finished_reason"),
            registry=self.registry,
        )  # fmt: skip
        for reason in ("stop", "length", "abort"):  # there from the start, as 0
            self.success.labels(*self._values, reason)
        self.ttft = self._histogram("vllm:time_to_first_token_seconds", "Request to first token.", _WALL_S)
        self.itl = self._histogram("vllm:inter_token_latency_seconds", "One token to the next.", _WALL_S)
        self.e2e = self._histogram("vllm:e2e_request_latency_seconds", "Request to last token.", _WALL_S)
        self.chip_ttft = self._histogram("systolith:chip_time_to_first_token_seconds", "On the chip.", _CHIP_S)
        self.chip_tpot = self._histogram("systolith:chip_time_per_output_token_seconds", "On the chip, mean.", _CHIP_S)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, _LABELS, registry=self.registry).labels(*self._values)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, _LABELS, registry=self.registry).labels(*self._values)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, about, _LABELS, registry=self.registry, buckets=buckets).labels(*self._values)

    def take(self, stats: EngineStats) -> None:
        """Take the engine's own figures."""
        last, self._last = self._last, stats
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.kv_usage.set(stats.pages_used / stats.pages_total if stats.pages_total else 0.0)
        for counter, name in (
            (self.prefix_queries, "prefix_queries"), (self.prefix_hits, "prefix_hits"),
            (self.preemptions, "preemptions"), (self.prompt_tokens, "prompt_tokens"),
            (self.generation_tokens, "generation_tokens"),
        ):  # fmt: skip
            counter.inc(getattr(stats, name) - (getattr(last, name) if last is not None else 0))

    def begin(self) -> RequestClock:
        """A request has come."""
        return RequestClock(self)

    def finished(self, reason: str, ttft_s: float | None, tpot_s: float | None) -> None:
        """A choice has ended, with the chip's own times."""
        self.success.labels(*self._values, reason).inc()
        if ttft_s is not None:
            self.chip_ttft.observe(ttft_s)
        if tpot_s is not None:
            self.chip_tpot.observe(tpot_s)

    def text(self) -> tuple[bytes, str]:
        """The page and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class RequestClock:
    """Wall times of one choice."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = time.monotonic()
        self._last: float | None = None

    def token(self) -> None:
        """A token has come from the engine."""
        now = time.monotonic()
        if self._last is None:
            self._metrics.ttft.observe(now - self._start)
        else:
            self._metrics.itl.observe(now - self._last)
        self._last = now

    def finished(self) -> None:
        """The choice has ended."""
        self._metrics.e2e.observe(time.monotonic() - self._start)
