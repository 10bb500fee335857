"""Two hosts with addresses of their own: network namespaces, on a bridge of the test's.

The test itself is a third machine on that network: broker and database run beside it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

__all__ = ["Host", "Network", "missing_for_hosts", "network"]


@dataclass(frozen=True)
class Host:
    """A machine of its own, as far as the network goes."""

    name: str
    address: str
    cable: str
    """The end of its cable at the bridge."""

    @property
    def prefix(self) -> Sequence[str]:
        """What runs a command on it."""
        return ("ip", "netns", "exec", self.name)

    def pull(self) -> None:
        """Pull its cable: what is sent is lost, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        """Put it back."""
        _ip("link", "set", self.cable, "up")


@dataclass(frozen=True)
class Network:
    """Where the test is, and the hosts."""

    address: str
    hosts: tuple[Host, ...]


def missing_for_hosts() -> str | None:
    """Say what namespaces would need here, or nothing."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if shutil.which("ip") is None:
        return "no ip on the PATH (iproute2)"
    name = f"aw{secrets.token_hex(3)}"
    made = subprocess.run(
        ["ip", "netns", "add", name], capture_output=True, text=True, check=False
    )
    if made.returncode:
        return f"the system makes no network namespaces: {made.stderr.strip():.100}"
    _ip("netns", "del", name)
    return None


@contextmanager
def network(count: int = 2) -> Iterator[Network]:
    """Make hosts on a network, in an address range that this machine does not use."""
    tag = secrets.token_hex(3)
    begin = f"10.{213 + secrets.randbelow(40)}.{secrets.randbelow(256)}"
    bridge = f"aw{tag}"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{begin}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = tuple(
            _host(stack, bridge, f"aw{tag}h{number}", f"{begin}.{number + 2}", number)
            for number in range(count)
        )
        yield Network(f"{begin}.1", hosts)


def _host(stack: ExitStack, bridge: str, name: str, address: str, number: int) -> Host:
    cable = f"{bridge}c{number}"
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", cable, "master", bridge, "up")
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", name, "link", "set", "lo", "up")
    return Host(name, address, cable)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
