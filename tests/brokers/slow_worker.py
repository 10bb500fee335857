"""A worker in a process of its own, so that it can be stopped.

It subscribes to the channel ``room``, says ``ready``, and then, whenever it has heard
nothing new for a moment, a JSON array: how many messages it heard, and how often it was
told that it may have missed some.
"""

from __future__ import annotations

import asyncio
import json
import sys

from authws.brokers import open_broker
from tests.brokers.peers import KEEP, Peer


async def main(url: str, prefix: str) -> None:
    peer = Peer(open_broker(url, prefix=prefix, kept=(KEEP,)))
    await peer.start()
    await peer.broker.subscribe("room")
    print("ready", flush=True)
    told = None
    while True:
        await asyncio.sleep(0.2)
        now = [len(peer.heard), len(peer.interruptions)]
        if now != told:
            told = now
            print(json.dumps(told), flush=True)


asyncio.run(main(*sys.argv[1:]))
