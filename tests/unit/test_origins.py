from __future__ import annotations

import pytest

from authws.decisions.origins import (
    HostPolicy,
    Origin,
    OriginPolicy,
    check_fetch_site,
    is_loopback,
)
from authws.exceptions import ConfigurationError, ForbiddenOriginError

APP = Origin("https", "app.example", 443)
POLICY = OriginPolicy(frozenset({APP}))
HOSTS = HostPolicy(frozenset({"app.example", "LOCALHOST", "127.0.0.1", "::1"}))


@pytest.mark.parametrize(
    ("text", "origin", "spelled"),
    [
        ("https://app.example", APP, "https://app.example"),
        ("https://app.example:443", APP, "https://app.example"),
        ("HTTPS://App.EXAMPLE", APP, "https://app.example"),
        ("http://app.example", Origin("http", "app.example", 80), "http://app.example"),
        (
            "https://app.example:80",
            Origin("https", "app.example", 80),
            "https://app.example:80",
        ),
        (
            "http://localhost:8000",
            Origin("http", "localhost", 8000),
            "http://localhost:8000",
        ),
        (
            "http://127.0.0.1:65535",
            Origin("http", "127.0.0.1", 65535),
            "http://127.0.0.1:65535",
        ),
        ("http://[::1]:8000", Origin("http", "::1", 8000), "http://[::1]:8000"),
        (
            "https://[2001:DB8:0:0::1]",
            Origin("https", "2001:db8::1", 443),
            "https://[2001:db8::1]",
        ),
        (
            "https://xn--bcher-kva.example",
            Origin("https", "xn--bcher-kva.example", 443),
            "https://xn--bcher-kva.example",
        ),
    ],
)
def test_origin_has_one_canonical_form(  # ORG-10
    text: str, origin: Origin, spelled: str
) -> None:
    assert Origin.parse(text) == origin
    assert str(origin) == spelled
    assert Origin.parse(spelled) == origin


NOT_ORIGINS = [
    pytest.param("", id="empty"),
    pytest.param("null", id="ORG-03"),
    pytest.param("*", id="star"),
    pytest.param("app.example", id="no scheme"),
    pytest.param("//app.example", id="no scheme but slashes"),
    pytest.param("https:app.example", id="no slashes"),
    pytest.param("wss://app.example", id="wss"),
    pytest.param("file://", id="file"),
    pytest.param("chrome-extension://abcdefgh", id="extension"),
    pytest.param("https://", id="no host"),
    pytest.param("https://.", id="only a dot"),
    pytest.param("https://app.example.", id="ORG-05 trailing dot"),
    pytest.param("https://app..example", id="empty label"),
    pytest.param("https://-app.example", id="leading hyphen"),
    pytest.param("https://app.example@evil.example", id="ORG-08 userinfo"),
    pytest.param("https://user:pw@app.example", id="ORG-08 password"),
    pytest.param("https://evil.example#app.example", id="ORG-08 fragment"),
    pytest.param("https://app.example`evil.example", id="ORG-08 backtick"),
    pytest.param("https://app.example\\evil.example", id="ORG-08 backslash"),
    pytest.param("https://app.example%2eevil.example", id="ORG-08 per cent"),
    pytest.param("https://app.example/", id="path"),
    pytest.param("https://app.example?x", id="query"),
    pytest.param("https://app.example, https://app.example", id="two in one"),
    pytest.param("https://app.example https://app.example", id="list of RFC 6454"),
    pytest.param(" https://app.example", id="leading space"),
    pytest.param("https://app.example ", id="trailing space"),
    pytest.param("https://app.example\n", id="ORG-12 line end"),
    pytest.param("https://app\t.example", id="ORG-12 tab"),
    pytest.param("https://app.example\r", id="ORG-12 CR"),
    pytest.param("https://app.example\0", id="ORG-12 NUL"),
    pytest.param("https://" + "a" * 65536, id="ORG-12 64 KiB"),
    pytest.param("https://" + "a" * 64 + ".example", id="long label"),
    pytest.param("https://" + ".".join(["a" * 50] * 5), id="long name"),
    pytest.param("https://bücher.example", id="ORG-10 not ASCII"),
    pytest.param("https://\N{KELVIN SIGN}.example", id="ORG-10 folds to ASCII"),
    pytest.param("http\N{LATIN SMALL LETTER LONG S}://app.example", id="long s"),
    pytest.param("https://app.example:", id="empty port"),
    pytest.param("https://app.example:0", id="port 0"),
    pytest.param("https://app.example:0443", id="port with a zero"),
    pytest.param("https://app.example:65536", id="port too high"),
    pytest.param("https://app.example:443:443", id="two ports"),
    pytest.param("https://app.example:\N{ARABIC-INDIC DIGIT FOUR}", id="other digit"),
    pytest.param("http://127.1", id="short IPv4"),
    pytest.param("http://2130706433", id="IPv4 as a number"),
    pytest.param("http://0x7f.0.0.1", id="IPv4 with hexadecimal"),
    pytest.param("http://127.0.0.0x1", id="IPv4 ending in hexadecimal"),
    pytest.param("http://127.0.0.01", id="IPv4 with a zero"),
    pytest.param("http://[::1", id="open bracket"),
    pytest.param("http://::1", id="no brackets"),
    pytest.param("http://[::1%25lo]", id="zone"),
    pytest.param("http://[1::2::3]", id="IPv6 with two gaps"),
    pytest.param("http://[127.0.0.1]", id="IPv4 in brackets"),
]


@pytest.mark.parametrize("text", NOT_ORIGINS)
def test_surplus_or_oddity_makes_it_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an origin|no such|253"):
        Origin.parse(text)


@pytest.mark.parametrize("text", NOT_ORIGINS)
def test_page_whose_origin_is_malformed_is_refused(text: str) -> None:
    with pytest.raises(ForbiddenOriginError) as refused:
        POLICY.check([text], required=False)
    assert len(str(refused.value)) < 250
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("required", [True, False])
def test_allowed_page_is_admitted(required: bool) -> None:
    assert POLICY.check(["https://APP.example:443"], required) == APP


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("https://evil.example", id="ORG-02"),
        pytest.param("http://app.example", id="other scheme"),
        pytest.param("https://app.example:8443", id="other port"),
        pytest.param("https://app.example.evil.example", id="ORG-04"),
        pytest.param("https://evilapp.example", id="ORG-05"),
        pytest.param("https://appXexample", id="ORG-06"),
        pytest.param("https://app.example_evil.example", id="ORG-08"),
        pytest.param("https://www.app.example", id="ORG-09 child"),
        pytest.param("https://other.example", id="ORG-09 sibling"),
        pytest.param("https://example", id="ORG-09 parent"),
        pytest.param("http://10.9.8.7", id="ORG-13 IPv4"),
        pytest.param("http://[::2]", id="ORG-13 IPv6"),
    ],
)
def test_other_page_is_refused(text: str) -> None:
    Origin.parse(text)
    with pytest.raises(ForbiddenOriginError, match="origin not allowed"):
        POLICY.check([text], required=False)


def test_missing_origin_is_refused_where_required() -> None:  # ORG-01
    with pytest.raises(ForbiddenOriginError, match="None"):
        POLICY.check([], required=True)


def test_missing_origin_is_nobody_where_not_required() -> None:  # ORG-19
    assert POLICY.check([], required=False) is None


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        ["https://app.example", "https://app.example"],
        ["https://evil.example", "https://app.example"],
        ["https://app.example", "https://evil.example"],
        ["", "https://app.example"],
        ["", ""],
    ],
)
def test_second_origin_header_is_refused(headers: list[str], required: bool) -> None:
    with pytest.raises(ForbiddenOriginError):
        POLICY.check(headers, required)


def test_policy_without_origins_admits_no_page() -> None:
    with pytest.raises(ForbiddenOriginError):
        OriginPolicy(frozenset()).check(["https://app.example"], required=False)


@pytest.mark.parametrize(
    "values", [[], ["same-origin"], ["same-site"], ["none"], ["of-the-future"]]
)
def test_fetch_that_is_not_cross_site_passes(values: list[str]) -> None:
    check_fetch_site(values)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(["cross-site"], id="ORG-18"),
        pytest.param(["Cross-Site "], id="ORG-18 case"),
        pytest.param(["same-origin", "cross-site"], id="ORG-18 repeated"),
        pytest.param(["same-origin, cross-site"], id="ORG-18 list"),
    ],
)
def test_cross_site_fetch_is_refused(values: list[str]) -> None:
    with pytest.raises(ForbiddenOriginError, match="cross-site"):
        check_fetch_site(values)


@pytest.mark.parametrize(
    "host",
    [
        "app.example",
        "APP.example",
        "app.example:443",
        "app.example:8000",
        "localhost:8000",
        "127.0.0.1",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
    ],
)
def test_own_name_is_allowed(host: str) -> None:
    assert HOSTS.allows([host])


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="missing"),
        pytest.param([""], id="empty"),
        pytest.param(["app.example", "app.example"], id="twice"),
        pytest.param(["evil.example"], id="ORG-14"),
        pytest.param(["app.example/x?"], id="ORG-15 path"),
        pytest.param(["app.example?"], id="ORG-15 query"),
        pytest.param(["app.example#"], id="ORG-15 fragment"),
        pytest.param(["app.example@evil.example"], id="userinfo"),
        pytest.param(["app.example.evil.example"], id="suffix"),
        pytest.param(["www.app.example"], id="child"),
        pytest.param(["app.example."], id="trailing dot"),
        pytest.param(["app.example:"], id="empty port"),
        pytest.param(["app.example:99999"], id="port too high"),
        pytest.param(["app.example:http"], id="port by name"),
        pytest.param(["app.example, evil.example"], id="list"),
        pytest.param([" app.example"], id="space"),
        pytest.param(["app.example\n"], id="line end"),
        pytest.param(["127.1"], id="short IPv4"),
        pytest.param(["::1"], id="IPv6 without brackets"),
        pytest.param(["[::2]"], id="other IPv6"),
        pytest.param(["[::ffff:127.0.0.1]"], id="IPv4 in IPv6"),
        pytest.param(["[1::2::3]"], id="malformed IPv6"),
        pytest.param(["a" * 65536], id="64 KiB"),
    ],
)
def test_other_name_is_not_allowed(headers: list[str]) -> None:
    assert not HOSTS.allows(headers)


@pytest.mark.parametrize(
    ("text", "is_trustworthy"),
    [
        ("https://app.example.com", True),
        ("http://app.example.com", False),
        ("http://127.evil.example", False),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
    ],
)
def test_origin_is_trustworthy_by_tls_or_on_this_machine(
    text: str, is_trustworthy: bool
) -> None:
    assert Origin.parse(text).is_trustworthy is is_trustworthy


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("LocalHost", True),
        ("127.evil.example", False),
        ("127.1", False),
        ("localhost.evil.example", False),
        ("0.0.0.0", False),  # noqa: S104 - looked at, not bound
        ("::", False),
        ("192.168.1.7", False),
        ("", False),
    ],
)
def test_loopback_is_an_address_or_one_name(host: str, is_one: bool) -> None:
    assert is_loopback(host) is is_one


@pytest.mark.parametrize(
    "name",
    ["", "*", "*.example", "app.example:8000", "https://app.example", "127.1", "[::g]"],
)
def test_host_list_takes_names_and_addresses_only(name: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed host"):
        HostPolicy(frozenset({name}))


# -------------------------------------------------------------------- a port of our own

OWN = OriginPolicy(frozenset({APP}), takes_own_port=True)
HERE = Origin("http", "127.0.0.1", 8301)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_page_of_the_socket_it_came_in_by_is_our_own(host: str, address: str) -> None:
    here = Origin("http", address, 8301)
    origin = OWN.check([f"http://{host}:8301"], required=True, here=here)
    assert origin is not None
    assert origin.port == 8301


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("http://127.0.0.1:8302", HERE),
        ("https://127.0.0.1:8301", HERE),
        ("http://127.0.0.1", HERE),
        ("http://evil.example:8301", HERE),
        ("http://127.0.0.2:8301", HERE),
        ("http://localhost.evil.example:8301", HERE),
        ("null", HERE),
        ("http://127.0.0.1:8301", Origin("http", "192.0.2.1", 8301)),
        ("http://127.0.0.1:8301", Origin("http", "/run/app.sock", 8301)),
        ("http://127.0.0.1:8301", Origin("https", "127.0.0.1", 8301)),
        ("http://127.0.0.1:8301", None),
    ],
)
def test_what_is_not_of_that_socket_is_as_foreign_as_ever(
    text: str, here: Origin | None
) -> None:
    with pytest.raises(ForbiddenOriginError):
        OWN.check([text], required=True, here=here)


def test_where_origins_are_told_the_socket_allows_none() -> None:
    with pytest.raises(ForbiddenOriginError):
        POLICY.check(["http://127.0.0.1:8301"], required=True, here=HERE)
