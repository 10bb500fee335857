"""RabbitMQ: a queue for what is carried, streams for what is kept.

What is carried goes through a direct exchange to one exclusive queue a worker, bound by
the names of its channels (``inbox``). What is kept goes into one of a few streams, its
partition, and comes from there, with the stream's offset as its position
(``partition``). All of it hangs on one ``lifeline``: whatever goes wrong with a queue,
a stream or a connection, all is let go of, and made again in the one way there is.
"""

from __future__ import annotations

from authws.brokers.rabbitmq.broker import RabbitmqBroker

__all__ = ["RabbitmqBroker"]
