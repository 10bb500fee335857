from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.brokers import open_broker
from authws.brokers.memory import MemoryBroker
from authws.brokers.urls import OPTIONS, SCHEMES, BrokerUrl
from authws.exceptions import ConfigurationError

SECRET = "hunter2"


# -------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("text", "kind", "is_tls", "port"),
    [
        ("redis://h", "redis", False, 6379),
        ("rediss://h", "redis", True, 6379),
        ("nats://h", "nats", False, 4222),
        ("tls://h", "nats", True, 4222),
        ("amqp://h", "rabbitmq", False, 5672),
        ("amqps://h", "rabbitmq", True, 5671),
        ("REDISS://h", "redis", True, 6379),
        (" redis://h\n", "redis", False, 6379),
    ],
)
def test_a_scheme_says_which_broker_whether_by_tls_and_its_usual_port(
    text: str, kind: str, is_tls: bool, port: int
) -> None:
    url = BrokerUrl.parse(text)
    assert (url.kind, url.is_tls, url.hosts) == (kind, is_tls, (("h", port),))
    assert (url.username, url.password, url.path, url.options) == ("", "", "", {})
    assert str(url) == f"{kind} at h:{port}"


def test_each_scheme_is_tried_here() -> None:
    schemes = "redis rediss nats tls amqp amqps memory"
    assert set(SCHEMES) == set(schemes.split())


@pytest.mark.parametrize("text", ["memory://", "MEMORY://", "memory:///"])
def test_the_memory_broker_is_nowhere(text: str) -> None:
    url = BrokerUrl.parse(text)
    assert (url.kind, url.hosts, str(url)) == ("memory", (), "memory")
    assert isinstance(open_broker(text), MemoryBroker)


@pytest.mark.parametrize(
    ("hosts", "expected", "spelled"),
    [
        ("h:1", [("h", 1)], "h:1"),
        ("h:65535", [("h", 65535)], "h:65535"),
        ("H.Example", [("h.example", 6379)], "h.example:6379"),
        ("my_redis-1", [("my_redis-1", 6379)], "my_redis-1:6379"),
        ("10.0.0.1:7", [("10.0.0.1", 7)], "10.0.0.1:7"),
        ("[::1]", [("::1", 6379)], "[::1]:6379"),
        ("[::1]:7", [("::1", 7)], "[::1]:7"),
        ("[2001:DB8:0:0::1]:7", [("2001:db8::1", 7)], "[2001:db8::1]:7"),
        ("[fe80::1%eth0]", [("fe80::1%eth0", 6379)], "[fe80::1%eth0]:6379"),
        ("a,b", [("a", 6379), ("b", 6379)], "a:6379,b:6379"),
        ("a:1,b,c:3", [("a", 1), ("b", 6379), ("c", 3)], "a:1,b:6379,c:3"),
        ("a,[::1]", [("a", 6379), ("::1", 6379)], "a:6379,[::1]:6379"),
        ("[::1]:1,a", [("::1", 1), ("a", 6379)], "[::1]:1,a:6379"),
        ("[::1],[::2]:2", [("::1", 6379), ("::2", 2)], "[::1]:6379,[::2]:2"),
    ],
)
@pytest.mark.parametrize("before", ["", "u:p@"])
@pytest.mark.parametrize("behind", ["", "/", "/0", "?sentinel=main"])
def test_hosts_are_one_or_several(
    hosts: str, expected: list[tuple[str, int]], spelled: str, before: str, behind: str
) -> None:
    url = BrokerUrl.parse(f"redis://{before}{hosts}{behind}")
    assert url.hosts == tuple(expected)
    assert str(url) == f"redis at {spelled}"


@pytest.mark.parametrize(
    ("userinfo", "username", "password"),
    [
        ("", "", ""),
        ("u@", "u", ""),
        ("u:@", "u", ""),
        (":p@", "", "p"),
        ("u:p@", "u", "p"),
        ("u:p:q@", "u", "p:q"),
        ("u:p@q@", "u", "p@q"),
        ("u%40x:p%3A%2F%3F%23%5B%5D%40%25@", "u@x", "p:/?#[]@%"),
        ("u:p#q@", "u", "p#q"),
        ("u:p[q@", "u", "p[q"),
        ("%C3%BC:p%20q@", "ü", "p q"),
        ("u:p+q@", "u", "p+q"),
        ("u:p,q@", "u", "p,q"),
    ],
)
def test_credentials_may_be_percent_encoded(
    userinfo: str, username: str, password: str
) -> None:
    url = BrokerUrl.parse(f"amqp://{userinfo}h:1/vhost")
    assert (url.username, url.password) == (username, password)
    assert (url.hosts, url.path) == ((("h", 1),), "vhost")


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_any_credentials_come_through_encoded(username: str, password: str) -> None:
    from urllib.parse import quote

    try:
        userinfo = f"{quote(username, safe='')}:{quote(password, safe='')}"
    except UnicodeEncodeError:
        return  # lone surrogates are in no URL
    url = BrokerUrl.parse(f"redis://{userinfo}@a:1,[::1]:2/3")
    assert (url.username, url.password) == (username, password)
    assert url.hosts == (("a", 1), ("::1", 2))


@pytest.mark.parametrize(
    ("behind", "path"),
    [
        ("", ""),
        ("/", ""),
        ("/3", "3"),
        ("/%2F", "/"),
        ("/a%2Fb", "a/b"),
        ("/a/b", "a/b"),
        ("/a%40b", "a@b"),
        ("/?partitions=3", ""),
        ("/v?partitions=3", "v"),
    ],
)
def test_a_path_is_what_stands_behind_the_hosts(behind: str, path: str) -> None:
    assert BrokerUrl.parse(f"amqp://h{behind}").path == path


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("redis://h?cluster=1", {"cluster": "1"}),
        ("redis://h?sentinel=main", {"sentinel": "main"}),
        (
            "rediss://h?ca=/a/b.pem&cert=c%20d.pem&key=k@k",
            {"ca": "/a/b.pem", "cert": "c d.pem", "key": "k@k"},
        ),
        ("nats://h?tls=1&ca=x", {"tls": "1", "ca": "x"}),
        ("amqps://h/v?partitions=8&ca=x", {"partitions": "8", "ca": "x"}),
    ],
)
def test_options_stand_behind_a_question_mark(
    text: str, options: dict[str, str]
) -> None:
    url = BrokerUrl.parse(text)
    assert url.options == options
    assert options.keys() <= OPTIONS[url.kind]


@pytest.mark.parametrize(
    ("value", "is_tls"), [("1", True), ("true", True), ("0", False), ("false", False)]
)
def test_nats_may_ask_for_tls_by_an_option(value: str, is_tls: bool) -> None:
    assert BrokerUrl.parse(f"nats://h?tls={value}").is_tls is is_tls


# ------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "text",
    [
        "",
        "redis",
        "redis:",
        "redis:/h",
        "redis//h",
        "://h",
        "h:6379",
        "http://h",
        "unix:///run/redis.sock",
        "redis+sentinel://h",
        f"u:{SECRET}@redis://h",
        f"redis:{SECRET}://h",
        f"{SECRET}@h",
    ],
)
def test_another_scheme_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match="there are memory://, redis://") as no:
        BrokerUrl.parse(text)
    assert SECRET not in str(no.value)


def test_a_scheme_that_looks_like_one_is_named() -> None:
    with pytest.raises(ConfigurationError, match="and not kafka://"):
        BrokerUrl.parse(f"kafka://u:{SECRET}@h")


@pytest.mark.parametrize(
    "hosts",
    [
        "",
        ":1",
        ",",
        "a,",
        ",a",
        "a,,b",
        "h:",
        "h:0",
        "h:65536",
        "h:99999",
        "h:123456",
        "h:x",
        "h:-1",
        "h:+1",
        "h:1:2",
        "h:1_0",
        "h:\N{ARABIC-INDIC DIGIT ONE}",
        "h h",
        "h\th",
        "h#x",
        "h\\x",
        "bücher.example",
        "::1",
        "[::1",
        "::1]",
        "[]",
        "[h]",
        "[::1]x",
        "[::1]:",
        "x[::1]",
        "[::1][::2]",
        "[1.2.3.4]",
        "[v1.x]",
    ],
)
@pytest.mark.parametrize("before", ["", f"u:{SECRET}@"])
def test_what_is_no_host_is_refused(hosts: str, before: str) -> None:
    with pytest.raises(ConfigurationError, match="a host is missing or none") as no:
        BrokerUrl.parse(f"nats://{before}{hosts}")
    assert SECRET not in str(no.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis://h?db=1",
        "redis://h?cluster",
        "redis://h?cluster=",
        "redis://h?=1",
        "redis://h?&",
        "redis://h?cluster=1&cluster=1",
        "redis://h?cluster=1&cluster=0",
        "redis://h?Cluster=1",
        "redis://h?partitions=1",
        "nats://h?creds=/run/creds",
        "memory://?cluster=1",
        "nats://h?sentinel=x",
        f"redis://h?password={SECRET}",
        f"amqp://u:a?{SECRET}@h",
        f"amqp://u:a?b={SECRET}@h",
    ],
)
def test_an_option_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="after the question mark") as no:
        BrokerUrl.parse(text)
    assert SECRET not in str(no.value)


@pytest.mark.parametrize(
    "text",
    [
        f"redis://u:1/{SECRET}@h",
        f"redis://u:1/{SECRET}@h:1/0?cluster=1",
        f"redis://u:/{SECRET}@h",
    ],
)
def test_a_slash_in_a_password_is_not_taken_for_the_end_of_the_host(text: str) -> None:
    """``u`` would be the host then, and the rest of the password would be shown."""
    with pytest.raises(ConfigurationError, match="write / as %2F") as no:
        BrokerUrl.parse(text)
    assert SECRET not in str(no.value)


@pytest.mark.parametrize("value", ["yes", "on", "2", "True", "%201"])
def test_tls_that_is_half_asked_for_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="tls is 1 or 0"):
        BrokerUrl.parse(f"nats://h?tls={value}")


@pytest.mark.parametrize(
    "text",
    ["redis://h?ca=x", "amqp://h?cert=x&key=y", "nats://h?ca=x", "nats://h?tls=0&ca=x"],
)
def test_certificates_without_tls_are_refused(text: str) -> None:
    """Whoever names them believes that there is TLS."""
    with pytest.raises(ConfigurationError, match="this is without"):
        BrokerUrl.parse(text)


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a key goes with its cert"):
        BrokerUrl.parse("rediss://h?key=x")


# ------------------------------------------------------------- what is never shown


@pytest.mark.parametrize("path", ["/0", "/x/y", ",nats://h2"])
def test_nothing_stands_behind_the_hosts_of_nats(path: str) -> None:
    """Some clients write several servers so; here the scheme stands once."""
    with pytest.raises(ConfigurationError, match="nothing behind the hosts") as no:
        BrokerUrl.parse(f"nats://u:{SECRET}@h{path}")
    assert SECRET not in str(no.value)


@pytest.mark.parametrize("text", ["memory://h", "memory://h:1", "memory:///x"])
def test_memory_is_in_this_process(text: str) -> None:
    with pytest.raises(ConfigurationError, match="memory"):
        BrokerUrl.parse(text)


@pytest.mark.parametrize("kind", ["redis", "nats", "amqp"])
def test_credentials_stand_once(kind: str) -> None:
    """Else what stands before the second host would be a part of the password."""
    with pytest.raises(ConfigurationError, match="stand once") as no:
        BrokerUrl.parse(f"{kind}://u:{SECRET}@h1,u2:{SECRET}@h2")
    assert SECRET not in str(no.value)


@pytest.mark.parametrize("kind", ["redis", "nats", "amqp"])
def test_neither_repr_nor_str_shows_credentials(kind: str) -> None:
    url = BrokerUrl.parse(f"{kind}://the-user:{SECRET}@h" + "/0" * (kind != "nats"))
    for text in (repr(url), str(url), f"{url}", repr([url])):
        assert SECRET not in text
        assert "the-user" not in text


def test_a_token_of_nats_is_not_shown_and_counts_as_a_password() -> None:
    url = BrokerUrl.parse(f"nats://{SECRET}@h")
    assert SECRET not in repr(url) + str(url)
    assert url.has_password


@pytest.mark.parametrize(
    ("text", "has_password"),
    [
        ("redis://h", False),
        ("redis://u@h", False),
        ("redis://u:@h", False),
        ("redis://:p@h", True),
        ("amqp://u:p@h", True),
        ("tls://h?cert=x", True),
        ("tls://h?ca=x", False),
        ("memory://", False),
    ],
)
def test_whether_the_broker_is_shown_a_secret(text: str, has_password: bool) -> None:
    assert BrokerUrl.parse(text).has_password is has_password


# ---------------------------------------------------------------------------------- TLS


def test_without_tls_there_is_no_context() -> None:
    assert BrokerUrl.parse("redis://h").ssl_context() is None


def test_tls_demands_a_certificate_for_the_name() -> None:
    context = BrokerUrl.parse("rediss://h").ssl_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("option", ["ca", "cert"])
@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_file_that_cannot_be_used_is_told(
    option: str, content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "x.pem"
    if content is not None:
        file.write_text(content)
    url = BrokerUrl.parse(f"rediss://u:{SECRET}@h?{option}={file}")
    with pytest.raises(ConfigurationError, match="they are PEM files") as refused:
        url.ssl_context()
    assert SECRET not in str(refused.value)


# ----------------------------------------------------------------- which broker opens


def test_a_broker_whose_client_is_not_installed_is_told_how_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("no redis", name="redis")

    monkeypatch.setattr("authws.brokers.import_module", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'authws\[redis\]'"):
        open_broker(f"redis://:{SECRET}@h")


def test_a_module_of_ours_that_is_missing_is_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("no", name=name)

    monkeypatch.setattr("authws.brokers.import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        open_broker("redis://h")
