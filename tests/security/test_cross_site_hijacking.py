"""Cross-site WebSocket hijacking: Origin and Host.

No browser asks before a handshake leaves for another site, and the cookie goes along.
So every spoiled Origin here comes with a credential that is good.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from starlette.routing import WebSocketRoute

from authws.service.app import websocket_endpoints
from tests.running import ENDPOINTS, PASSWORD, Service, free_port, running
from tests.security.peers import Answer, Visitor, controlled, knock, visitor
from tests.wire import request, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = "https://app.example.com"
PUNYCODE = "https://xn--bcher-kva.example"
COOKIE_ENDPOINTS = tuple(path for path in ENDPOINTS if "session-cookie" in path)
TOKEN_ENDPOINTS = tuple(path for path in ENDPOINTS if path not in COOKIE_ENDPOINTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service on loopback whose pages come from a host of their own, and two more."""
    port = free_port()
    async with running(
        tmp_path_factory.mktemp("origins"),
        port=port,
        allowed_origins=(
            APP,
            PUNYCODE,
            f"http://127.0.0.1:{port}",
            f"http://[::1]:{port}",
        ),
    ) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(service: Service) -> Visitor:
    return await visitor(service)


async def knock_everywhere(
    service: Service, alice: Visitor, *lines: str, **options: Any
) -> list[Answer]:
    return await asyncio.gather(
        *(knock(service, path, *lines, who=alice, **options) for path in ENDPOINTS)
    )


FOREIGN = {
    "ORG-02": "https://evil.example",
    "ORG-02-other-scheme": "http://app.example.com",
    "ORG-02-other-port": "https://app.example.com:8443",
    "ORG-02-websocket-scheme": "wss://app.example.com",
    "ORG-03": "null",
    "ORG-03-empty": "",
    "ORG-04": "https://app.example.com.evil.example",
    "ORG-04-dash": "https://app.example.com-evil.example",
    "ORG-05": "https://evilapp.example.com",
    "ORG-05-dot": "https://app.example.com.",
    "ORG-06": "https://appXexample.com",
    "ORG-06-second-dot": "https://app.exampleXcom",
    "ORG-08-userinfo": "https://app.example.com@evil.example",
    "ORG-08-fragment": "https://evil.example#app.example.com",
    "ORG-08-query": "https://evil.example?app.example.com",
    "ORG-08-backtick": "https://app.example.com`evil.example",
    "ORG-08-underscore": "https://app.example.com_evil.example",
    "ORG-08-backslash": "https://app.example.com\\evil.example",
    "ORG-08-password": "https://evil.example:443@app.example.com",
    "ORG-08-path": "https://app.example.com/",
    "ORG-09-sibling": "https://other.example.com",
    "ORG-09-child": "https://child.app.example.com",
    "ORG-09-parent": "https://example.com",
    "ORG-10-trailing-dot": "https://APP.example.com.",
    "ORG-10-unicode-host": "https://bücher.example",
    "ORG-10-port-zero": "https://app.example.com:0443",
    "ORG-10-ipv6-mapped": "http://[::ffff:127.0.0.1]:{port}",
    "ORG-12-tab": "https://app.example.com\tevil",
    "ORG-12-two": "https://app.example.com https://evil.example",
    "ORG-12-list": "https://app.example.com, https://evil.example",
    "ORG-13": "http://10.9.8.7",
    "ORG-13-ipv6": "http://[::2]",
    "ORG-13-decimal": "http://2130706433:{port}",
    "ORG-13-short": "http://127.1:{port}",
}


@pytest.mark.parametrize("origin", FOREIGN.values(), ids=FOREIGN)
async def test_foreign_origin_is_refused_before_accept_on_every_endpoint(
    service: Service, alice: Visitor, origin: str
) -> None:
    line = f"Origin: {origin.format(port=service.port)}"
    for answer in await knock_everywhere(service, alice, line):
        assert answer.status == 403
        assert answer.is_refused_before_accept


@pytest.mark.parametrize(
    "path", COOKIE_ENDPOINTS, ids=lambda path: f"ORG-01-{path[4:].replace('/', '-')}"
)
async def test_cookie_without_origin_is_refused_before_accept(
    service: Service, alice: Visitor, path: str
) -> None:
    answer = await knock(service, path, who=alice)
    assert answer.status == 403
    assert answer.is_refused_before_accept


ALLOWED = {
    "ORG-10-allowed": APP,
    "ORG-10-upper-case": "HTTPS://APP.EXAMPLE.COM",
    "ORG-10-default-port": f"{APP}:443",
    "ORG-10-punycode": "https://XN--bcher-kva.example",
    "ORG-10-ipv6": "http://[::1]:{port}",
    "ORG-10-ipv6-long": "http://[0:0:0:0:0:0:0:1]:{port}",
}


@pytest.mark.parametrize("origin", ALLOWED.values(), ids=ALLOWED)
async def test_spelling_of_an_allowed_origin_makes_no_difference(
    service: Service, alice: Visitor, origin: str
) -> None:
    line = f"Origin: {origin.format(port=service.port)}"
    for answer in await knock_everywhere(service, alice, line):
        assert answer.is_admitted, answer


REPEATED = {
    "ORG-12-repeated": (f"Origin: {APP}", "Origin: https://evil.example"),
    "ORG-12-repeated-last": ("Origin: https://evil.example", f"Origin: {APP}"),
    "ORG-12-repeated-same": (f"Origin: {APP}", f"Origin: {APP}"),
    "ORG-12-cr": (f"Origin: {APP}\revil",),
    "ORG-12-nul": (f"Origin: {APP}\0",),
    "ORG-12-64-kib": (f"Origin: {APP}{'a' * 65_536}",),
    "ORG-12-8-kib": (f"Origin: {APP}{'a' * 8192}",),
}


@pytest.mark.parametrize("lines", REPEATED.values(), ids=REPEATED)
async def test_origin_that_no_browser_sends_is_refused(
    service: Service, alice: Visitor, lines: tuple[str, ...]
) -> None:
    for answer in await knock_everywhere(service, alice, *lines):
        assert answer.status in (400, 403, 431)
        assert answer.is_refused_before_accept


HOSTS = {
    "ORG-14": "evil.example",
    "ORG-14-with-port": "evil.example:8000",
    "ORG-14-prefix": "127.0.0.1.evil.example",
    "ORG-15": "app.example.com/x?",
    "ORG-15-fragment": "app.example.com#",
    "ORG-15-question": "app.example.com?",
    "ORG-15-userinfo": "app.example.com@evil.example",
    "ORG-15-userinfo-good": "evil.example@app.example.com",
    "ORG-15-empty": "",
    "ORG-15-trailing-dot": "app.example.com.",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
async def test_host_that_is_not_ours_is_refused_whatever_the_origin(
    service: Service, alice: Visitor, host: str
) -> None:
    for origin in (f"http://{host}", APP):
        line = f"Origin: {origin}"
        for answer in await knock_everywhere(service, alice, line, host=host):
            assert answer.status == 400
            assert answer.is_refused_before_accept


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((), id="ORG-15-missing"),
        pytest.param(("host: 127.0.0.1", "host: evil.example"), id="ORG-15-two-hosts"),
        pytest.param(("host: 127.0.0.1", "host: 127.0.0.1"), id="ORG-15-twice"),
    ],
)
async def test_anything_but_one_host_header_is_refused(
    service: Service, alice: Visitor, lines: tuple[str, ...]
) -> None:
    lines = (*lines, f"Origin: {APP}")
    for answer in await knock_everywhere(service, alice, *lines, host=None):
        assert answer.status == 400
        assert answer.is_refused_before_accept


@pytest.mark.parametrize("target", ["/healthz", "/auth/me", "/", "/ws/query-param"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1/x?"], ids=repr)
@pytest.mark.parametrize("case", ["ORG-14-http"])
async def test_plain_http_is_not_answered_under_another_name_either(
    service: Service, target: str, host: str, case: str
) -> None:
    async with wire(service.port) as peer:
        good = request(target).decode()
        await peer.send(good.replace("Host: 127.0.0.1", f"Host: {host}").encode())
        response = await peer.response()
    assert response.status == 400
    assert b"host_unknown" in response.body


FORWARDED = {
    "ORG-16-x-forwarded-host": "X-Forwarded-Host: evil.example",
    "ORG-16-forwarded": "Forwarded: for=127.0.0.1;host=evil.example;proto=https",
    "ORG-16-x-original-host": "X-Original-Host: evil.example",
    "ORG-16-x-forwarded-proto": "X-Forwarded-Proto: https",
    "ORG-16-x-original-url": "X-Original-URL: /healthz",
}


@pytest.mark.parametrize("line", FORWARDED.values(), ids=FORWARDED)
async def test_forwarding_headers_do_not_change_who_we_are(
    service: Service, alice: Visitor, line: str
) -> None:
    evil = "Origin: https://evil.example"
    for answer in await knock_everywhere(service, alice, line, evil):
        assert answer.status == 403
    for answer in await knock_everywhere(
        service, alice, line, evil, host="evil.example"
    ):
        assert answer.status == 400
    for answer in await knock_everywhere(service, alice, line, f"Origin: {APP}"):
        assert answer.is_admitted


FETCH_SITES = {
    "ORG-18": ("Sec-Fetch-Site: cross-site",),
    "ORG-18-upper-case": ("sec-fetch-site: Cross-Site",),
    "ORG-18-repeated": ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
}


@pytest.mark.parametrize("lines", FETCH_SITES.values(), ids=FETCH_SITES)
async def test_what_the_browser_calls_cross_site_is_refused_with_a_good_origin(
    service: Service, alice: Visitor, lines: tuple[str, ...]
) -> None:
    for answer in await knock_everywhere(service, alice, f"Origin: {APP}", *lines):
        assert answer.status == 403
        assert answer.is_refused_before_accept


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
@pytest.mark.parametrize("case", ["ORG-18-other-values"])
async def test_other_fetch_sites_are_left_to_the_origin(
    service: Service, alice: Visitor, site: str, case: str
) -> None:
    lines = (f"Origin: {APP}", f"Sec-Fetch-Site: {site}")
    for answer in await knock_everywhere(service, alice, *lines):
        assert answer.is_admitted


@pytest.mark.parametrize(
    "path", TOKEN_ENDPOINTS, ids=lambda path: f"ORG-19-{path[4:].replace('/', '-')}"
)
async def test_token_needs_no_origin_but_none_that_is_foreign(
    service: Service, alice: Visitor, path: str
) -> None:
    assert (await knock(service, path, who=alice)).is_admitted
    refused = await knock(service, path, "Origin: https://evil.example", who=alice)
    assert refused.status == 403
    assert refused.is_refused_before_accept


@pytest.mark.parametrize("case", ["ORG-21-inventory"])
async def test_the_endpoints_attacked_here_are_all_there_are(
    service: Service, case: str
) -> None:
    served = set(websocket_endpoints(service.house))
    routed = {
        getattr(route, "path", "?")
        for route in service.app.routes
        if isinstance(route, WebSocketRoute) or "websocket" in type(route).__name__
    }
    assert served | routed == set(ENDPOINTS)


@pytest.mark.parametrize(
    "path", ENDPOINTS, ids=lambda path: f"ORG-21-{path[4:].replace('/', '-')}"
)
async def test_every_endpoint_refuses_strangers_and_foreign_pages(
    service: Service, path: str
) -> None:
    stranger = await knock(service, path, f"Origin: {APP}")
    assert stranger.close == (1008, "auth_missing")
    assert all("auth_required" in message for message in stranger.heard)
    foreign = await knock(service, path, "Origin: https://evil.example")
    assert foreign.status == 403


UNKNOWN = (
    "/",
    "/ws",
    "/ws/",
    "/ws/query-param/",
    "//ws/query-param",
    "/ws/query-param/echo/",
    "/ws/query-param/echo/x",
    "/WS/query-param",
    "/ws/../ws/query-param",
    "/ws/query%2Dparam/x",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/auth/login",
)


@pytest.mark.parametrize("path", UNKNOWN, ids=lambda path: f"ORG-21-unknown-{path}")
async def test_no_other_path_ever_becomes_a_websocket(
    service: Service, alice: Visitor, path: str
) -> None:
    answer = await knock(service, f"{path}?token={alice.token}", f"Origin: {APP}")
    assert answer.status in (403, 404)
    assert answer.is_refused_before_accept


@pytest.mark.parametrize("case", ["ORG-02-rest"])
async def test_foreign_page_cannot_log_in_and_is_logged_once(
    service: Service, case: str
) -> None:
    seen = len(service.security_events)
    async with service.http(headers={"origin": "https://evil.example"}) as http:
        answer = await http.post(
            "/auth/session", json={"username": "alice", "password": PASSWORD}
        )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    (event,) = service.security_events[seen:]
    assert (event["event"], event["reason"]) == ("refused", "origin_forbidden")


@pytest.mark.parametrize(
    "path", ENDPOINTS, ids=lambda path: f"ORG-02-logged-{path[4:].replace('/', '-')}"
)
async def test_a_foreign_handshake_writes_one_line_that_names_the_origin(
    service: Service, alice: Visitor, path: str
) -> None:
    seen = len(service.security_events)
    await knock(service, path, "Origin: https://evil.example", who=alice)
    (event,) = service.security_events[seen:]
    assert (event["event"], event["reason"]) == ("refused", "origin_forbidden")
    assert "evil.example" in event["detail"]
    assert event["address"] == "127.0.0.1"
