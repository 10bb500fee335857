"""Metrics for Prometheus. Labels are from fixed vocabularies: never a name, never an
address, never anything a peer sent."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from authws.live.hub import Hub

__all__ = ["Metrics"]


class Metrics:
    """What ``/metrics`` shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._events = Counter(
            "authws_events",
            "Security events, as in the security log",
            ["event", "reason"],
            registry=self._registry,
        )

    def count_event(self, event: str, reason: str) -> None:
        """Count one event of the security log."""
        self._events.labels(event, reason).inc()

    def watch(self, hub: Hub) -> None:
        """Read the hub's numbers whenever the metrics are asked for."""
        self._registry.register(_HubCollector(hub))

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self._registry)


class _HubCollector(Collector):
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        hub = self._hub
        connections = GaugeMetricFamily(
            "authws_connections", "Open connections", labels=["strategy"]
        )
        for strategy in ("query_param", "first_message", "session_cookie"):
            connections.add_metric(
                [strategy],
                sum(
                    1
                    for connection in hub.connections.values()
                    if connection.principal.strategy == strategy
                ),
            )
        yield connections
        yield GaugeMetricFamily("authws_rooms", "Rooms in use", value=len(hub.rooms))
        yield CounterMetricFamily(
            "authws_messages_delivered",
            "Messages put into outboxes",
            value=hub.messages_delivered,
        )
