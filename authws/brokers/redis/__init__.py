"""Redis: one server, one that Sentinels watch over, or a Redis Cluster.

It carries by its pub/sub, and keeps in a stream for each channel. What that promises,
and what an operator has to know, is in docs/brokers.md.
"""

from authws.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
