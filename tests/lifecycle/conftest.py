"""Every life is lived twice: under any server, and over the wire that ours offers."""

from __future__ import annotations

import pytest

from tests.engine import Peer


@pytest.fixture(autouse=True, params=["asgi", "wire"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two."""
    monkeypatch.setattr(Peer, "over_wire", request.param == "wire")
    return str(request.param)
