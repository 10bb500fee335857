"""The floor table of the house: a module imports its own floor and those below."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS: dict[str, int] = {
    "authws.principal": 0,
    "authws.close_codes": 0,
    "authws.exceptions": 0,
    "authws.clock": 0,
    "authws.decisions": 1,
    "authws.strategies": 2,
    "authws.brokers": 2,
    "authws.stores": 2,
    "authws.live": 3,
    "authws.service": 4,
    "authws.cli": 5,
    "authws.client": 5,
    "authws.audit": 5,
    "authws.__main__": 5,
    "authws": 5,
}
"""The longest prefix decides; ``authws`` itself holds the public names."""

WINGS = {"authws.strategies", "authws.brokers", "authws.stores"}
"""Rooms of one floor that do not know each other."""

CEILINGS = {"authws.client": 1}
"""The client runs on the user's machine: it may know the words, not the server."""

HOMES: dict[str, tuple[str, ...]] = {
    "itsdangerous": ("authws.decisions.session_cookies",),
    "jwt": ("authws.decisions.tokens", "authws.decisions.keys"),
    "passlib": ("authws.stores.passwords",),
    "sqlalchemy": ("authws.stores",),
    "redis": ("authws.brokers.redis",),
    "nats": ("authws.brokers.nats",),
    "pamqp": ("authws.brokers.rabbitmq",),
    "alembic": ("authws.stores",),
}
"""Libraries that live in one place, so that replacing one touches one place."""

EVENT_LOOP = {"asyncio", "anyio", "fastapi", "httpx", "socket", "starlette", "uvicorn"}
"""What a decision, a plain function of plain values, has no use for."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.glob("authws/**/*.py"))}


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str:
    """The longest prefix of the module that the floor table names."""
    rooms = [room for room in FLOORS if is_within(module, room)]
    room = max(rooms, key=len)
    # The bare package is a room for its own __init__, not for whatever lies in it.
    if room == "authws" and module != "authws":
        pytest.fail(f"{module} stands on no floor: add it to FLOORS")
    return room


def imports_of(module: str) -> Iterator[tuple[int, str]]:
    """Yield each import, at any depth, as its line and the module it names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                # ``from authws import close_codes`` names a module, not the package.
                inner = f"{base}.{alias.name}"
                is_module = inner in MODULES or any(
                    is_within(name, inner) for name in MODULES
                )
                yield node.lineno, inner if is_module else base


def misplaced(module: str, target: str) -> str | None:
    """Say what is wrong with an import, or nothing."""
    library = target.partition(".")[0]
    room = room_of(module)
    if library != "authws":
        homes = HOMES.get(library)
        if homes and not any(is_within(module, home) for home in homes):
            return f"{library} lives only in {', '.join(homes)}"
        if FLOORS[room] == 0 and library not in sys.stdlib_module_names:
            return f"floor 0 knows the standard library only, not {library}"
        if FLOORS[room] == 1 and library in EVENT_LOOP:
            return f"a decision is synchronous and does no I/O: not {library}"
        return None
    other = room_of(target)
    if FLOORS[other] > FLOORS[room]:
        return f"{target} is on floor {FLOORS[other]}, above {FLOORS[room]}"
    if other != room and {room, other} <= WINGS:
        return f"{room} and {other} are wings that do not know each other"
    if other != room and FLOORS[other] > CEILINGS.get(room, FLOORS[other]):
        return f"{room} imports floors 0 to {CEILINGS[room]} only"
    return None


def test_there_are_modules_to_look_at() -> None:
    assert {"authws.principal", "authws.close_codes", "authws.exceptions"} <= {*MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_its_own_floor_and_those_below(module: str) -> None:
    path = MODULES[module].relative_to(ROOT)
    wrong = [
        f"{path}:{line}: {reason}"
        for line, target in imports_of(module)
        if (reason := misplaced(module, target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module", [name for name in MODULES if is_within(name, "authws.decisions")]
)
def test_decision_is_synchronous(module: str) -> None:
    coroutines = [
        node.name
        for node in ast.walk(ast.parse(MODULES[module].read_bytes()))
        if isinstance(node, ast.AsyncFunctionDef)
    ]
    assert not coroutines


@pytest.mark.parametrize(
    ("module", "target", "reason"),
    [
        ("authws.principal", "authws.decisions.tokens", "on floor 1, above 0"),
        ("authws.principal", "httpx", "standard library only"),
        ("authws.decisions.origins", "asyncio", "synchronous"),
        ("authws.decisions.origins", "jwt", "jwt lives only in"),
        ("authws.decisions.origins", "authws", "on floor 5, above 1"),
        ("authws.stores.users", "authws.brokers.memory", "do not know each other"),
        ("authws.live.hub", "authws.service.app", "on floor 4, above 3"),
        ("authws.live.hub", "sqlalchemy.ext.asyncio", "sqlalchemy lives only in"),
        ("authws.client.session", "authws.live.hub", "floors 0 to 1 only"),
        ("authws.client.session", "authws.cli", "floors 0 to 1 only"),
    ],
)
def test_table_refuses(module: str, target: str, reason: str) -> None:
    assert reason in str(misplaced(module, target))


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("authws.decisions.tokens", "jwt"),
        ("authws.stores.users", "authws.stores.passwords"),
        ("authws.stores.users", "sqlalchemy"),
        ("authws.service.app", "authws.live.hub"),
        ("authws.client.session", "authws.close_codes"),
        ("authws.cli.main", "authws.client"),
    ],
)
def test_table_allows(module: str, target: str) -> None:
    assert misplaced(module, target) is None
