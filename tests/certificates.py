"""A throw-away authority, and the certificates that it signs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "Certificates", "issue"]


class Authority:
    """Signs for servers and for clients; all of its files are in one directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._name = name
        self._key = generate_private_key(SECP256R1())
        self.path = directory / f"{name}.pem"
        """Its own certificate: what a client is told to trust."""
        self.path.write_bytes(_pem(self._sign(name, self._key)))

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Return the files of a certificate and of its key; it is for these hosts, or
        for the one that it is named after."""
        key = generate_private_key(SECP256R1())
        certificate, private = (
            self._directory / f"{self._name}-{name}.{end}" for end in ("pem", "key")
        )
        certificate.write_bytes(_pem(self._sign(name, key, *(hosts or (name,)))))
        private.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        for path in (certificate, private):  # a server may run as somebody else
            path.chmod(0o644)
        return certificate, private

    def _sign(
        self, name: str, key: EllipticCurvePrivateKey, *hosts: str
    ) -> x509.Certificate:
        today = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self._name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - timedelta(days=1))
            .not_valid_after(today + timedelta(days=1))
            .add_extension(x509.BasicConstraints(key is self._key, None), critical=True)
            .add_extension(_usage(is_authority=key is self._key), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    self._key.public_key()
                ),
                critical=False,
            )
        )
        if hosts:
            names = x509.SubjectAlternativeName(map(_general_name, hosts))
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, SHA256())


@dataclass(frozen=True)
class Certificates:
    """An authority's own, and what it signed for a server."""

    authority: Path
    certificate: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


def issue(directory: Path, *names: str) -> Certificates:
    """Make an authority, and a certificate for 127.0.0.1 and these names."""
    authority = Authority(directory)
    return Certificates(authority.path, *authority.issue("server", "127.0.0.1", *names))


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    """What its key is for; Python 3.13 looks (``VERIFY_X509_STRICT``)."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
