"""A client of the service: log in over REST, connect in any of the three ways.

    async with Client("https://chat.example.com") as client:
        await client.log_in("alice", password)
        async with await client.connect(Strategy.FIRST_MESSAGE) as connection:
            await connection.join("lobby")
            async for event in connection.events():
                ...

``stay_connected`` gives a connection that comes back by itself and brings what was
missed. Every ending raises an error whose ``retry`` says what to do next, in the words
of the close table.
"""

from authws.client.connection import Connection
from authws.client.endings import (
    ClientError,
    EndedError,
    Ending,
    RefusedError,
    UnreachableError,
)
from authws.client.events import (
    Ack,
    AuthExpiring,
    Dropped,
    Event,
    Failure,
    Joined,
    Left,
    Message,
    Pong,
    Presence,
    Restarting,
    Resync,
    Unknown,
    Welcome,
)
from authws.client.lasting import LastingConnection, Lost
from authws.client.session import Client, Strategy, Tokens
from authws.decisions.history import Position

__all__ = [
    "Ack",
    "AuthExpiring",
    "Client",
    "ClientError",
    "Connection",
    "Dropped",
    "EndedError",
    "Ending",
    "Event",
    "Failure",
    "Joined",
    "LastingConnection",
    "Left",
    "Lost",
    "Message",
    "Pong",
    "Position",
    "Presence",
    "RefusedError",
    "Restarting",
    "Resync",
    "Strategy",
    "Tokens",
    "Unknown",
    "UnreachableError",
    "Welcome",
]
