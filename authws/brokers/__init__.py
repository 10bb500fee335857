"""Carrying messages from whoever publishes to whoever subscribed; a module a broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from authws.brokers.base import Broker
from authws.brokers.memory import MemoryBroker
from authws.brokers.urls import BrokerUrl
from authws.clock import Clock
from authws.decisions.history import Retention
from authws.exceptions import ConfigurationError

__all__ = ["open_broker"]

_CLASSES = {"redis": "RedisBroker", "nats": "NatsBroker", "rabbitmq": "RabbitmqBroker"}


def open_broker(
    url: str,
    *,
    prefix: str = "authws",
    kept: Sequence[Retention] = (),
    history_bytes: int = 67_108_864,
    clock: Clock | None = None,
) -> Broker:
    """Return the broker that a URL names; nothing is connected before ``start``.

    Args:
        url: ``memory://``, ``redis://``, ``rediss://``, ``nats://``, ``tls://``,
            ``amqp://`` or ``amqps://``.
        prefix: begins every name of ours in the broker, so that two deployments on
            one broker do not hear each other: 1 to 32 of ``a-z A-Z 0-9 _ -``.
        kept: every ``Retention`` that will be asked for.
        history_bytes: what all channels keep together at most, where the broker can
            bound it; 0 is off.
        clock: where the time is read.

    Raises:
        ConfigurationError: no such broker, or its client is not installed.
    """
    address = BrokerUrl.parse(url)
    if address.kind == "memory":
        return MemoryBroker(history_bytes=history_bytes, clock=clock)
    try:
        module = import_module(f"authws.brokers.{address.kind}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("authws"):
            raise
        raise ConfigurationError(
            f"AUTHWS_BROKER_URL names {address.kind}, whose client is not installed: "
            f"pip install 'authws[{address.kind}]'"
        ) from None
    make: Callable[..., Broker] = getattr(module, _CLASSES[address.kind])
    return make(
        address, prefix=prefix, kept=kept, history_bytes=history_bytes, clock=clock
    )
