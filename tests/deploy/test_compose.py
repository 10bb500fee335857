"""deploy/compose: what Compose would run, by its schema and by what it means."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from authws.brokers.urls import BrokerUrl
from authws.service import doctor
from tests.deploy.brokers import ShippedNats, ShippedRedis
from tests.deploy.shipped import (
    DEPLOY,
    a_copy,
    by_module,
    compose,
    configured,
    environment,
    make_secrets,
    seconds,
)

BROKERS = ("redis", "nats", "rabbitmq")
SERVICES = ("authws-1", "authws-2")
HERE = DEPLOY / "compose"
GIVEN = {"fullchain.pem", "privkey.pem"}
"""The certificate: what secrets.sh cannot make."""


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def deployment(broker: str) -> dict[str, Any]:
    return compose(broker, RUN_AS="10001:10001")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder, to make secrets in."""
    return a_copy(tmp_path)


# ------------------------------------------------------------------------- as a whole


def test_it_is_a_compose_file(deployment: dict[str, Any]) -> None:
    code = (
        "import compose_spec, sys; compose_spec.PyOptions().from_yaml(sys.stdin.read())"
    )
    done = by_module("compose_spec", code, yaml.safe_dump(deployment))
    assert done.returncode == 0, done.stderr
    deployment["services"]["authws-1"]["stop_grace"] = "30s"  # it does look
    assert by_module("compose_spec", code, yaml.safe_dump(deployment)).returncode


def test_nothing_but_the_proxys_port_is_published(deployment: dict[str, Any]) -> None:
    published = {
        name: service["ports"]
        for name, service in deployment["services"].items()
        if "ports" in service
    }
    assert published == {"proxy": ["443:443"]}
    listening = (DEPLOY / "nginx" / "authws.conf").read_text()
    assert set(re.findall(r"^ +listen (\S+) ssl", listening, re.M)) == {"443"}


def test_what_keeps_data_is_reached_by_the_service_alone(
    deployment: dict[str, Any], broker: str
) -> None:
    on = {
        name: set(service.get("networks", ()))
        for name, service in deployment["services"].items()
    }
    assert on.pop("nats-volume", set()) == set()
    assert on == {
        "proxy": {"edge"},
        **{name: {"edge", "back"} for name in SERVICES},
        "database": {"back"},
        broker: {"back"},
    }
    assert deployment["networks"]["back"]["internal"] is True


def test_every_container_is_confined(deployment: dict[str, Any]) -> None:
    for name, service in deployment["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"] == {"driver": "local"}, name
        assert not service.get("privileged"), name
        if name != "nats-volume":
            assert "cap_add" not in service, name
            assert service["user"].split(":")[0] not in ("root", "0"), name
        if name not in ("nats-volume", "rabbitmq"):
            assert service["read_only"] is True, name


def test_root_does_one_thing_without_a_network() -> None:
    hand_over = compose("nats", RUN_AS="1:1")["services"]["nats-volume"]
    assert hand_over["user"] == "root"
    assert hand_over["entrypoint"] == ["chown", "10002:10002", "/data"]
    assert hand_over["cap_add"] == ["CHOWN"]
    assert hand_over["network_mode"] == "none"
    assert "restart" not in hand_over


def test_no_tag_floats_free(deployment: dict[str, Any]) -> None:
    for name, service in deployment["services"].items():
        image, _, tag = service["image"].partition(":")
        assert tag not in ("", "latest"), name
        assert "/" not in image, name


# --------------------------------------------------------------------- the two services


def test_the_services_differ_in_their_address_alone(deployment: dict[str, Any]) -> None:
    one, two = (deployment["services"][name] for name in SERVICES)
    addresses = {one["networks"]["edge"].pop("ipv4_address")}
    addresses.add(two["networks"]["edge"].pop("ipv4_address"))
    assert one == two
    assert len(addresses) == 2


def test_the_addresses_agree(deployment: dict[str, Any]) -> None:
    """What nginx asks, what authws believes, and what the network gives."""
    services = deployment["services"]
    of = {
        name: services[name]["networks"]["edge"]["ipv4_address"]
        for name in ("proxy", *SERVICES)
    }
    (subnet,) = deployment["networks"]["edge"]["ipam"]["config"]
    assert all(ip_address(one) in ip_network(subnet["subnet"]) for one in of.values())
    told = services["authws-1"]["environment"]
    assert told["AUTHWS_TRUSTED_PROXIES"] == of["proxy"]
    image = (DEPLOY / "container" / "Containerfile").read_text()
    (port,) = re.findall(r"AUTHWS_PORT=(\d+)", image)
    upstream = (HERE / "upstream.conf").read_text()
    asked = re.findall(r"^ +server (\S+);$", upstream, re.M)
    assert asked == [f"{of[name]}:{port}" for name in SERVICES]
    assert f"EXPOSE {port}\n" in image


def test_a_drain_has_time_to_end(deployment: dict[str, Any], folder: Path) -> None:
    services = deployment["services"]
    for name in (*SERVICES, "proxy"):
        drain = int(services["authws-1"]["environment"]["AUTHWS_DRAIN"])
        assert seconds(services[name]["stop_grace_period"]) >= drain + 5, name
    # stopped beside the services, and not before them: it carries the farewells
    assert "depends_on" not in services["proxy"]
    for name in SERVICES:
        assert "proxy" not in services[name]["depends_on"]


def test_the_services_wait_for_what_they_need(
    deployment: dict[str, Any], broker: str
) -> None:
    for name in SERVICES:
        needs = deployment["services"][name]["depends_on"]
        assert needs == {
            "database": {"condition": "service_healthy"},
            broker: {"condition": "service_healthy"},
        }
    for needed in needs:
        assert deployment["services"][needed]["healthcheck"]["test"]


def test_health_is_readiness(deployment: dict[str, Any]) -> None:
    image = (DEPLOY / "container" / "Containerfile").read_text()
    for name in SERVICES:
        command = deployment["services"][name]["healthcheck"]["test"]
        assert command == ["CMD", "python", "/opt/authws/ready.py"]
    assert 'CMD ["python", "/opt/authws/ready.py"]' in image
    assert "COPY deploy/container/ready.py /opt/authws/ready.py" in image
    told = deployment["services"]["authws-1"]["environment"]
    asked = deployment["services"]["proxy"]["healthcheck"]["test"][-1]
    assert asked == told["AUTHWS_PUBLIC_ORIGIN"] + "/readyz"


# -------------------------------------------------------------------------- its secrets


def test_no_secret_is_in_an_environment(deployment: dict[str, Any]) -> None:
    for name, service in deployment["services"].items():
        for variable, value in service.get("environment", {}).items():
            assert not re.search(r"://[^/]*@", str(value)), (name, variable)
            if re.search(r"PASS|SECRET|KEY|_URL", variable):
                assert variable.endswith("_FILE"), (name, variable)
                assert value.startswith("/run/secrets/"), (name, variable)
                assert value.removeprefix("/run/secrets/") in service["secrets"]
        command = " ".join(service.get("command", []))
        assert not re.search(r"(?i)pass", command), name


def test_every_file_that_is_mounted_is_shipped_or_made(
    deployment: dict[str, Any], broker: str, folder: Path
) -> None:
    assert make_secrets(folder, broker).returncode == 0
    for config in deployment["configs"].values():
        assert (HERE / config["file"]).is_file(), config
    wanted = {Path(secret["file"]) for secret in deployment["secrets"].values()}
    assert {path.parent for path in wanted} == {Path("secrets")}
    missing = {path.name for path in wanted if not (folder / path).is_file()}
    assert missing == GIVEN
    for service in deployment["services"].values():
        for kind in ("configs", "secrets"):
            for one in service.get(kind, []):
                source = one if isinstance(one, str) else one["source"]
                assert source in deployment[kind]


def test_the_service_would_start_with_what_was_made(
    deployment: dict[str, Any], broker: str, folder: Path
) -> None:
    assert make_secrets(folder, broker).returncode == 0
    settings = configured(environment(deployment, folder))
    settings = settings.model_copy(
        update={"behind_proxy": True, "data_dir": folder / "data"}
    )
    doctor.check(settings)
    warnings = [problem.what for problem in doctor.problems(settings)]
    assert all("can be read on the way" in warning for warning in warnings), warnings
    assert len(settings.secret_keys) == 1
    url = BrokerUrl.parse(settings.broker_url.get_secret_value())
    assert (url.kind, url.hosts[0][0]) == (broker, broker)
    assert url.has_password
    assert "@database/authws" in settings.database


def test_secrets_are_their_owners_alone(broker: str, folder: Path) -> None:
    assert make_secrets(folder, broker).returncode == 0
    secrets = folder / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in secrets.iterdir()}
    assert modes == {
        "secret_keys": 0o400,
        "database_url": 0o400,
        "database_password": 0o444,
        "broker_url": 0o400,
        "broker_password": 0o400,
        f"{broker}.conf": 0o444,
    }
    said = dict(
        line.split("=", 1) for line in (folder / ".env").read_text().splitlines()
    )
    assert said.keys() == {"COMPOSE_FILE", "RUN_AS"}
    for name in said["COMPOSE_FILE"].split(":"):
        assert (folder / name).is_file()
    uid, _, gid = said["RUN_AS"].partition(":")
    assert "0" not in (uid, gid)
    for name in ("secret_keys", "database_url", "broker_url"):
        status = (secrets / name).stat()
        assert (status.st_uid, status.st_gid) == (int(uid), int(gid))


def test_secrets_are_made_once_and_are_nobody_elses(
    folder: Path, tmp_path: Path
) -> None:
    def made() -> dict[str, str]:
        files = (folder / "secrets").iterdir()
        return {file.name: file.read_text() for file in files}

    assert make_secrets(folder, "redis").returncode == 0
    first = made()
    assert make_secrets(folder, "redis").returncode == 0
    assert made() == first
    assert make_secrets(folder, "nats").returncode == 0
    kept = {name: text for name, text in made().items() if name in first}
    assert {name for name in first if kept[name] != first[name]} == {"broker_url"}
    assert "compose.nats.yaml" in (folder / ".env").read_text()
    shutil.rmtree(folder / "secrets")
    assert make_secrets(folder, "redis").returncode == 0
    assert all(text != first[name] for name, text in made().items())


@pytest.mark.parametrize("given", [(), ("memory",), ("redis; id",)])
def test_secrets_for_no_broker_are_not_made(
    given: tuple[str, ...], folder: Path
) -> None:
    done = make_secrets(folder, *given)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert not (folder / "secrets").exists()


# ------------------------------------------------------------- the brokers, really run


async def test_redis_keeps_what_it_was_told_and_asks_for_the_password(
    folder: Path,
) -> None:
    make_secrets(folder, "redis")
    auth = folder / "secrets" / "redis.conf"
    async with ShippedRedis(folder / "secrets") as server:
        password = server.password
        async with Redis(port=server.port, protocol=2) as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.ping()
        async with Redis(port=server.port, password=password, protocol=2) as known:
            assert (await known.config_get("appendonly"))["appendonly"] == "yes"
            await known.set("said", "once")
        await server.stop()
        await server.start()
        async with Redis(port=server.port, password=password, protocol=2) as known:
            assert await known.get("said") == b"once"
        # the health check, as it is run in the container
        checked = compose("redis", RUN_AS="1:1")["services"]["redis"]
        command = checked["healthcheck"]["test"][1]
        command = command.replace("/run/secrets/redis.conf", str(auth))
        command = command.replace("redis-cli", f"redis-cli -p {server.port}")
        assert await asyncio.to_thread(os.system, command) == 0
        auth.chmod(0o600)
        auth.write_text("requirepass wrong\n")
        assert await asyncio.to_thread(os.system, command) != 0


async def test_nats_has_jetstream_and_asks_for_the_password(folder: Path) -> None:
    make_secrets(folder, "nats")
    async with ShippedNats(folder / "secrets") as server:
        for given, answer in (("wrong", b"-ERR"), (server.password, b"PONG")):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            told = json.loads((await reader.readline()).removeprefix(b"INFO "))
            assert (told["auth_required"], told["jetstream"]) == (True, True)
            hello = json.dumps({"user": "authws", "pass": given, "verbose": False})
            writer.write(f"CONNECT {hello}\r\nPING\r\n".encode())
            assert (await reader.readline()).startswith(answer)
            writer.close()
            await writer.wait_closed()
