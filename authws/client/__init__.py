"""A client of the service: log in over REST, connect in any of the three ways.

    async with Client("https://chat.example.com") as client:
        await client.log_in("alice", password)
        async with await client.connect(Strategy.FIRST_MESSAGE) as connection:
            await connection.join("lobby")
            async for event in connection.events():
                ...

Every ending raises an error whose ``retry`` says what to do next, in the words of the
close table.
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
    Unknown,
    Welcome,
)
from authws.client.session import Client, Strategy, Tokens

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
    "Left",
    "Message",
    "Pong",
    "Presence",
    "RefusedError",
    "Restarting",
    "Strategy",
    "Tokens",
    "Unknown",
    "UnreachableError",
    "Welcome",
]
