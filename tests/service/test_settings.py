"""What follows from the settings: origins and names, own and further ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from authws.service import doctor
from authws.service.settings import Settings

LOOPBACK = {
    "http://127.0.0.1:8000",
    "http://localhost:8000",
    "http://[::1]:8000",
}
NAMES = {"127.0.0.1", "localhost", "[::1]"}
APP = "https://app.example.com"
CHAT = "https://chat.example.com"


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, data_dir=Path("nowhere"), **changes)


@pytest.mark.parametrize(
    ("changes", "origins"),
    [
        ({}, LOOPBACK),
        ({"allowed_origins": APP}, {*LOOPBACK, APP}),
        ({"public_origin": CHAT}, {CHAT}),
        ({"public_origin": CHAT, "allowed_origins": APP}, {CHAT, APP}),
        ({"host": "127.0.0.2"}, {*LOOPBACK, "http://127.0.0.2:8000"}),
        ({"host": "LOCALHOST"}, LOOPBACK),
        ({"host": "::1"}, LOOPBACK),
        ({"host": "192.0.2.1", "allowed_origins": APP}, {APP}),
    ],
)
def test_further_origins_stand_beside_the_services_own(
    changes: dict[str, Any], origins: set[str]
) -> None:
    assert set(settings(**changes).origins) == origins


@pytest.mark.parametrize(
    ("changes", "hosts"),
    [
        ({}, {*NAMES, "::1"}),
        ({"allowed_origins": APP}, {*NAMES, "::1", "app.example.com"}),
        ({"public_origin": CHAT}, {*NAMES, "chat.example.com"}),
        (
            {"public_origin": CHAT, "allowed_hosts": "10.0.0.5"},
            {"chat.example.com", "10.0.0.5"},
        ),
        ({"allowed_hosts": "box"}, {"127.0.0.1", "localhost", "::1", "box"}),
        ({"host": "192.0.2.1", "allowed_hosts": "box"}, {"box"}),
    ],
)
def test_further_names_stand_beside_the_services_own(
    changes: dict[str, Any], hosts: set[str]
) -> None:
    assert settings(**changes).hosts == hosts


def test_doctor_warns_of_a_service_that_does_not_know_its_own_origin() -> None:
    def warned(**changes: Any) -> bool:
        found = doctor.problems(settings(host="192.0.2.1", **changes))
        return any("its own origin" in problem.what for problem in found)

    assert warned(allowed_origins=APP)
    assert not warned(allowed_origins=APP, public_origin=CHAT)
