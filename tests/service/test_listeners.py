"""What one process listens on, and what several do."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from authws.exceptions import ConfigurationError
from authws.service.listeners import Listeners
from authws.service.settings import Settings

spreading = pytest.mark.skipif(sys.platform != "linux", reason="all share one there")


def settings(**options: Any) -> Settings:
    return Settings(_env_file=None, **{"port": 0, **options})


@spreading
def test_second_service_of_the_same_user_is_refused_the_port() -> None:
    """The system itself would let it share, and give it our connections."""
    with Listeners(settings(workers=3)) as listeners:
        for workers in (1, 3):
            with pytest.raises(ConfigurationError, match="cannot listen on"):
                Listeners(settings(workers=workers, port=listeners.port))
    with Listeners(settings(workers=3, port=listeners.port)):
        pass


@spreading
def test_listener_that_was_taken_down_is_bound_again() -> None:
    with Listeners(settings(workers=2)) as listeners:
        first = listeners.of(0)
        assert listeners.of(0) is first
        listeners.take_down(0)
        again = listeners.of(0)
        assert again is not first
        assert again.getsockname() == listeners.of(1).getsockname()


def test_where_the_system_does_not_spread_all_share_one_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with Listeners(settings(workers=2)) as listeners:
        assert listeners.of(0) is listeners.of(1)
        listeners.take_down(0)
        listeners.keep_only(0)
        assert listeners.of(0).fileno() >= 0
