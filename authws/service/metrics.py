"""Metrics for Prometheus. Labels are from fixed vocabularies: never a name, never an
address, never anything a peer sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from authws.decisions.limits import Limit
from authws.live.door import Door
from authws.live.hub import Hub

__all__ = ["Metrics"]

REVOCATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10)
"""Seconds; a push takes milliseconds, a lost one up to the recheck interval."""


class Metrics:
    """What ``/metrics`` shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._limits = dict.fromkeys(map(str, Limit), 0)
        self._shared: Callable[[], Awaitable[bytes]] | None = None
        self._events: Counter[tuple[str, str]] = Counter()
        """By event and reason. Counted here and not by the library, which takes a lock
        to be told of one: there are two for every handshake."""
        self._revocation = Histogram(
            "authws_revocation_seconds",
            "From a revocation to the close frame, for each connection that it ended",
            buckets=REVOCATION_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_CountingCollector(self._events, self._limits))

    def count_event(self, event: str, reason: str, limit: str) -> None:
        """Count one event of the security log, and the limit that was reached."""
        self._events[event, reason] += 1
        if limit:
            self._limits[limit] += 1

    def observe_revocation(self, seconds: float) -> None:
        """Note how long a revoked connection stayed open."""
        self._revocation.observe(seconds)

    def watch(self, hub: Hub, door: Door) -> None:
        """Read their numbers whenever the metrics are asked for."""
        self._registry.register(_LiveCollector(hub, door))
        self._registry.register(_BrokerCollector(hub))

    def share(self, everybody: Callable[[], Awaitable[bytes]]) -> None:
        """Show what all workers have counted; ``everybody`` asks them."""
        self._shared = everybody

    async def exposition(self) -> bytes:
        """Return what a scrape is answered."""
        return self.render() if self._shared is None else await self._shared()

    def render(self) -> bytes:
        """Return the text exposition format, of this process alone."""
        return generate_latest(self._registry)


class _CountingCollector(Collector):
    def __init__(
        self, events: Mapping[tuple[str, str], int], limits: Mapping[str, int]
    ) -> None:
        self._events = events
        self._limits = limits

    def collect(self) -> Iterator[CounterMetricFamily]:
        limits = CounterMetricFamily(
            "authws_limit_hits", "Times that a peer ran into a limit", labels=["limit"]
        )
        for limit, count in self._limits.items():
            limits.add_metric([limit], count)
        yield limits
        events = CounterMetricFamily(
            "authws_events",
            "Security events, as in the security log",
            labels=["event", "reason"],
        )
        for labels, count in tuple(self._events.items()):
            events.add_metric(labels, count)
        yield events


class _LiveCollector(Collector):
    def __init__(self, hub: Hub, door: Door) -> None:
        self._hub = hub
        self._door = door

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
        yield GaugeMetricFamily(
            "authws_unauthenticated",
            "WebSockets whose peer is not known yet",
            value=self._door.strangers.inside,
        )
        yield GaugeMetricFamily("authws_rooms", "Rooms in use", value=len(hub.rooms))
        yield CounterMetricFamily(
            "authws_messages_delivered",
            "Messages put into outboxes",
            value=hub.rooms.messages_delivered,
        )
        dropped = sum(connection.dropped for connection in hub.connections.values())
        yield CounterMetricFamily(
            "authws_messages_dropped",
            "Messages that slow peers missed under a policy that drops",
            value=hub.messages_dropped + dropped,
        )


class _BrokerCollector(Collector):
    """What goes between workers."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        carrier, cluster = self._hub.carrier, self._hub.cluster
        yield GaugeMetricFamily(
            "authws_broker_up",
            "Whether the broker could be reached when it was last tried",
            value=carrier.broker.is_up,
        )
        yield GaugeMetricFamily(
            "authws_workers", "Workers that live, this one too", 1 + len(cluster.others)
        )
        refused = CounterMetricFamily(
            "authws_broker_messages_refused",
            "Messages of the broker's that were not handed on, or showed a loss",
            labels=["reason"],
        )
        refused.add_metric(["no_message"], carrier.broker.dropped)
        for reason, count in tuple(carrier.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        recoveries = CounterMetricFamily(
            "authws_recoveries",
            "Times that a peer or a room had missed something, by what came of it",
            labels=["outcome"],
        )
        for outcome, count in tuple(self._hub.rooms.recovered.items()):
            recoveries.add_metric([outcome], count)
        yield recoveries
