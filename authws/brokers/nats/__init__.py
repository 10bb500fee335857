"""NATS: one server, or a cluster of them.

It carries over core subjects, and keeps in JetStream. What that promises, and what an
operator has to know, is in docs/brokers.md.
"""

from authws.brokers.nats.broker import NatsBroker

__all__ = ["NatsBroker"]
