"""Certificates of the tests' own, of an authority that is thrown away with them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
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

__all__ = ["Certificates", "issue"]


@dataclass(frozen=True)
class Certificates:
    """A throw-away authority, and what it signed for 127.0.0.1 and further names."""

    authority: Path
    certificate: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


def issue(folder: Path, *names: str) -> Certificates:
    """Make an authority and a server's certificate, in files of this folder."""
    authority_key, key = (generate_private_key(SECP256R1()) for _ in range(2))
    authority = _sign("authority", authority_key, "authority", authority_key)
    certificate = _sign("server", key, "authority", authority_key, names)
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "key.pem")
    made.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    made.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return made


def _sign(
    name: str,
    key: EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: EllipticCurvePrivateKey,
    names: tuple[str, ...] = (),
) -> x509.Certificate:
    """Sign a certificate: of an authority if it signs itself, else of a server."""
    named = [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in (name, issuer)]
    today = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(named[:1]))
        .issuer_name(x509.Name(named[1:]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.BasicConstraints(name == issuer, None), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if name != issuer:
        address = x509.IPAddress(IPv4Address("127.0.0.1"))
        builder = builder.add_extension(
            x509.SubjectAlternativeName([address, *map(x509.DNSName, names)]),
            critical=False,
        )
    return builder.sign(issuer_key, SHA256())
