"""Who is measured: a table of contenders, by how each of them is asked for its work.

What an ask has in angle brackets is what its server gave: `<token>`, `<cookie>`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from bench.contenders.tokens import make_token
from bench.servers import (
    AbsentError,
    Authws,
    Nats,
    Nchan,
    Node,
    Python,
    Running,
    Server,
)

__all__ = [
    "CONTENDERS",
    "FIRST_MESSAGE",
    "FLOOR",
    "FORGED_FIRST_MESSAGE",
    "FORGED_QUERY_PARAM",
    "IN_A_ROUTE",
    "NATS",
    "OURS",
    "QUERY_PARAM",
    "SERVICE",
    "SESSION_COOKIE",
    "Contender",
    "Started",
    "started",
]

Ask = tuple[str, ...]


@dataclass(frozen=True)
class Contender:
    """A way to use a server, and how the generator asks for each kind of work."""

    name: str
    server: Server
    connect: Ask = ()
    echo: Ask = ()
    fanout: Ask = ()
    is_authenticated: bool = False
    """Whether it finds out who is there."""


@dataclass(frozen=True)
class Started:
    """A contender whose server runs."""

    contender: Contender
    running: Running

    @property
    def name(self) -> str:
        return self.contender.name

    def ask(self, kind: str) -> Ask:
        """The generator's arguments for ``connect``, ``echo`` or ``fanout``.

        None at all means that it does not do that.
        """
        return tuple(map(self._put_facts_in, getattr(self.contender, kind)))

    def _put_facts_in(self, text: str) -> str:
        for name, value in self.running.facts.items():
            text = text.replace(f"<{name}>", value)
        return text


WS, ROOM = ("--path", "/ws"), ("--path", "/room")

PICOWS = Python("plain_picows", "picows")
PICOWS_AUTH = ("--path", f"/auth?token={make_token()}")

CHANNELS = Python("django_channels", "channels")
CHANNELS_AUTH = (
    *("--path", "/auth"),
    *("--header", "Cookie: sessionid=0123456789abcdefghijklmnopqrstuv"),
)

SOCKET_IO = "/socket.io/?EIO=4&transport=websocket"
SOCKET_IO_TALK = (
    *("--sio", "--first", "40", "--wait", "40{"),
    *("--pre", '42["m","', "--post", '"]'),
)

NATS_TALK = ("--path", "/", "--binary", "--marker", "--wait", "PONG")
NATS_HELLO = (
    r'CONNECT {"verbose":false,"pedantic":false,"echo":true,"auth_token":"bench-token"}'
    r"\r\n"
)


def nats_on(subject: str) -> Ask:
    """Subscribe to a subject, and publish on it."""
    return (
        *NATS_TALK,
        *("--first", rf"{NATS_HELLO}SUB {subject} 1\r\nPING\r\n"),
        *("--pre", rf"PUB {subject} %b\r\n", "--post", r"\r\n"),
    )


OK = ("--wait", "auth_ok")
JOIN = '{"type":"join","room":"r%r"}'
IN_ROOM = ("--pre", '{"type":"publish","room":"r%r","data":"', "--post", '"}')
AUTH, FORGED = (f'{{"type":"auth","token":"{what}"}}' for what in ("%s", "<forged>"))
EACH = ("--lines", "<tokens>")
"""With a token of its own for each connection, so that none was verified before."""
COOKIE = ("--header", "Cookie: <cookie>", "--header", "Origin: <origin>")
JOINED = ("--first", JOIN, "--wait", "joined", *IN_ROOM)

SERVICE = Authws()
EDDSA = Authws(settings=(("signing_algorithm", "EdDSA"),))
ES256 = Authws(settings=(("signing_algorithm", "ES256"),))
DEPENDENCY = ("-m", "bench.contenders.authws_dependency")

BY_QUERY = ("--path", "/ws/query-param/echo?token=%s", *EACH)

QUERY_PARAM = Contender(
    "authws, query_param",
    SERVICE,
    connect=BY_QUERY,
    echo=BY_QUERY,
    fanout=("--path", "/ws/query-param?token=%s", *EACH, *JOINED),
    is_authenticated=True,
)
FIRST_MESSAGE = Contender(
    "authws, first_message",
    SERVICE,
    connect=("--path", "/ws/first-message/echo", "--first", AUTH, *EACH, *OK),
    echo=("--path", "/ws/first-message/echo", "--first", AUTH, *EACH, *OK),
    fanout=(
        *("--path", "/ws/first-message", "--first", AUTH, *EACH, *OK),
        *("--then", JOIN, "--until", "joined", *IN_ROOM),
    ),
    is_authenticated=True,
)
SESSION_COOKIE = Contender(
    "authws, session_cookie",
    SERVICE,
    connect=("--path", "/ws/session-cookie/echo", *COOKIE),
    echo=("--path", "/ws/session-cookie/echo", *COOKIE),
    fanout=("--path", "/ws/session-cookie", *COOKIE, *JOINED),
    is_authenticated=True,
)
OURS = (QUERY_PARAM, FIRST_MESSAGE, SESSION_COOKIE)
"""The service, by each of its strategies."""

BY_ROUTE = ("--path", "/ws?token=%s", *EACH, *OK)


def of_ours(name: str, server: Authws, connect: Ask, echo: Ask = ()) -> Contender:
    return Contender(name, server, connect=connect, echo=echo, is_authenticated=True)


FORGED_QUERY_PARAM = of_ours(
    "authws, query_param, a forged token",
    SERVICE,
    ("--path", "/ws/query-param/echo?token=<forged>", "--expect", "1008"),
)
FORGED_FIRST_MESSAGE = of_ours(
    "authws, first_message, a forged token",
    SERVICE,
    ("--path", "/ws/first-message/echo", "--first", FORGED, "--expect", "1008"),
)
IN_A_ROUTE = of_ours(
    "authws as a dependency", Authws((*DEPENDENCY, "ours")), BY_ROUTE, BY_ROUTE
)

FLOOR = "plain FastAPI, no authentication"
NATS = "nats-server"

CONTENDERS: Sequence[Contender] = (
    Contender(FLOOR, Python("naive_fastapi", "fastapi"), WS, WS, ROOM),
    Contender(
        "FastAPI, JWT in the query",
        Python("fastapi_jwt", "fastapi"),
        connect=("--path", f"/ws?token={make_token()}"),
        echo=("--path", f"/ws?token={make_token()}"),
        is_authenticated=True,
    ),
    Contender("Starlette", Python("plain_starlette", "starlette"), WS, WS, ROOM),
    Contender("websockets", Python("plain_websockets", "websockets"), WS, WS, ROOM),
    Contender("aiohttp", Python("plain_aiohttp", "aiohttp"), WS, WS, ROOM),
    Contender("picows", PICOWS, WS, WS, ROOM),
    Contender("picows, JWT in the query", PICOWS, PICOWS_AUTH, is_authenticated=True),
    Contender("Django Channels", CHANNELS, WS, WS, ROOM),
    Contender(
        "Django Channels, its sessions", CHANNELS, CHANNELS_AUTH, is_authenticated=True
    ),
    Contender(
        "python-socketio",
        Python("plain_socketio", "python-socketio"),
        connect=("--path", SOCKET_IO, *SOCKET_IO_TALK),
        echo=("--path", SOCKET_IO, *SOCKET_IO_TALK),
        fanout=("--path", f"{SOCKET_IO}&room=1", *SOCKET_IO_TALK),
    ),
    Contender("Node ws", Node(), WS, WS, ROOM),
    Contender(
        "nginx with nchan",
        Nchan(),
        connect=("--path", "/channel/c%i"),
        echo=("--path", "/channel/e%i"),
        fanout=("--path", "/channel/r%r"),
    ),
    Contender(
        NATS,
        Nats(),
        connect=(*NATS_TALK, "--first", rf"{NATS_HELLO}PING\r\n"),
        echo=nats_on("own.%i"),
        fanout=nats_on("r%r"),
        is_authenticated=True,
    ),
    *OURS,
    of_ours("authws, query_param, ES256", ES256, BY_QUERY),
    of_ours("authws, query_param, EdDSA", EDDSA, BY_QUERY),
    of_ours(
        "authws, query_param, a token seen before",
        SERVICE,
        ("--path", "/ws/query-param/echo?token=<token>"),
    ),
    FORGED_QUERY_PARAM,
    FORGED_FIRST_MESSAGE,
    IN_A_ROUTE,
    of_ours(
        "authws as a dependency, plain Uvicorn",
        Authws((*DEPENDENCY, "plain")),
        BY_ROUTE,
        BY_ROUTE,
    ),
)


@asynccontextmanager
async def started(
    contenders: Sequence[Contender], core: int | None
) -> AsyncIterator[tuple[list[Started], dict[str, str]]]:
    """All of them at once, of whom only one at a time has work.

    Yields those that run, and by name why others do not.
    """
    servers: dict[Server, Running] = {}
    absent: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        for one in contenders:
            if one.server in servers or one.name in absent:
                continue
            try:
                run = one.server.running(core)
                servers[one.server] = await stack.enter_async_context(run)
            except AbsentError as why:
                absent |= {
                    c.name: str(why) for c in contenders if c.server == one.server
                }
        yield (
            [
                Started(one, servers[one.server])
                for one in contenders
                if one.server in servers
            ],
            absent,
        )
