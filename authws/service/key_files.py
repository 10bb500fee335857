"""The secrets: from the environment, or generated once into a file of mode 0600."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from authws.decisions.keys import (
    KeyRing,
    SigningKey,
    check_secret,
    hmac_key,
    pem_key,
)
from authws.exceptions import ConfigurationError
from authws.service.settings import Settings

__all__ = ["Secrets", "load_secrets", "prepare_data_dir", "rotate_keys"]

FILE_NAME = "secrets.json"


@dataclass(frozen=True, slots=True)
class Secrets:
    """What signs: tokens by the ring, cookies by keys derived from the secrets."""

    keyring: KeyRing
    cookie_secrets: tuple[bytes, ...]


def prepare_data_dir(data_dir: Path) -> None:
    """Make the data directory, of mode 0700.

    Raises:
        ConfigurationError: it exists and others may enter it, or it cannot be made.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = data_dir.stat().st_mode
    except FileExistsError:
        raise ConfigurationError(
            f"{data_dir} is not a directory; set AUTHWS_DATA_DIR to one"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {data_dir} cannot be made or read "
            f"({error.strerror}); set AUTHWS_DATA_DIR to one that can"
        ) from None
    if mode & 0o077:
        raise ConfigurationError(
            f"others may enter the data directory {data_dir}: chmod 700 {data_dir}"
        )


def load_secrets(settings: Settings) -> Secrets:
    """Read the secrets, generating them at the very first start.

    Raises:
        ConfigurationError: a secret is weak, or its file is open to others.
    """
    prepare_data_dir(settings.data_dir)
    stored = _read_or_create(settings.data_dir / FILE_NAME, settings.signing_algorithm)
    configured = [key.get_secret_value() for key in settings.secret_keys]
    for secret in configured:
        check_secret(secret)
    masters = [s.encode() for s in configured or stored["secret_keys"]]
    keys = [
        *(hmac_key(master) for master in masters),
        *(pem_key(pem.encode()) for pem in stored["signing_keys"]),
    ]
    # every key verifies, so a change of algorithm drops nobody
    ring = KeyRing(_signing_last(keys, settings.signing_algorithm))
    return Secrets(ring, tuple(masters))


def rotate_keys(settings: Settings, keep: int = 2) -> str:
    """Append a new key that signs from the next start on; return its id.

    ``keep`` older keys go on verifying, so that nobody is dropped.

    Raises:
        ConfigurationError: the secrets come from the environment or from a file of
            their own, and are yours to rotate there.
    """
    if settings.secret_keys and settings.signing_algorithm == "HS256":
        where = settings.secret_keys_file or "AUTHWS_SECRET_KEYS"
        raise ConfigurationError(
            f"{where} holds the keys: append a new one there, newest last"
        )
    prepare_data_dir(settings.data_dir)
    path = settings.data_dir / FILE_NAME
    stored = _read_or_create(path, settings.signing_algorithm)
    stored["secret_keys"] = [*stored["secret_keys"], _new_secret()][-keep - 1 :]
    if settings.signing_algorithm != "HS256":
        fresh = _new_pem(settings.signing_algorithm)
        stored["signing_keys"] = [*stored["signing_keys"], fresh][-keep - 1 :]
    with _failures(path):
        _write(path, stored)
    return load_secrets(settings).keyring.newest.kid


def _signing_last(keys: Sequence[SigningKey], algorithm: str) -> list[SigningKey]:
    others = [key for key in keys if key.algorithm != algorithm]
    signing = [key for key in keys if key.algorithm == algorithm]
    if not signing:
        raise ConfigurationError(
            f"no {algorithm} key yet: run `authws keys rotate` once"
        )
    return [*others, *signing]


def _read_or_create(path: Path, algorithm: str) -> dict[str, list[str]]:
    with _failures(path):
        return _read_or_create_file(path, algorithm)


def _read_or_create_file(path: Path, algorithm: str) -> dict[str, list[str]]:
    if not path.exists():
        first = {"secret_keys": [_new_secret()], "signing_keys": []}
        # another process may be first: then its secrets are the secrets
        with contextlib.suppress(FileExistsError):
            _create(path, first)
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"others may read {path}: chmod 600 {path}")
    stored = _parse(path)
    if algorithm != "HS256" and not stored["signing_keys"]:
        stored["signing_keys"] = [_new_pem(algorithm)]
        _write(path, stored)
    return stored


def _parse(path: Path) -> dict[str, list[str]]:
    """Read the file, whose shape whoever restores or edits it may have spoiled."""
    try:
        stored = json.loads(path.read_text())
    except (ValueError, RecursionError):
        stored = None
    if (
        not isinstance(stored, dict)
        or not _is_list_of_text(stored.get("secret_keys"))
        or not _is_list_of_text(stored.get("signing_keys"))
        or not stored["secret_keys"]
    ):
        raise ConfigurationError(f"{path} is damaged: restore it from a copy")
    for secret in stored["secret_keys"]:
        try:
            check_secret(secret)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{path}: {error}; restore it from a copy"
            ) from None
    return stored


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


@contextlib.contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Tell in a sentence what the system refuses."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read or written: {error.strerror}; see that it and its "
            "directory belong to who runs this"
        ) from None


def _create(path: Path, stored: dict[str, list[str]]) -> None:
    """Write the file whole or not at all, and never over another."""
    temporary = _write_beside(path, stored)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


def _write(path: Path, stored: dict[str, list[str]]) -> None:
    _write_beside(path, stored).replace(path)


def _write_beside(path: Path, stored: dict[str, list[str]]) -> Path:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(stored, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _new_secret() -> str:
    return secrets.token_urlsafe(48)


def _new_pem(algorithm: str) -> str:
    key = (
        Ed25519PrivateKey.generate()
        if algorithm == "EdDSA"
        else generate_private_key(SECP256R1())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
