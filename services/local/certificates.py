"""A certificate authority for the demo, and a certificate for its receiver."""

import ipaddress
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.local.errors import LocalServerError

AUTHORITY_LASTS = timedelta(days=3650)
SERVER_LASTS = timedelta(days=365)
# A certificate that would end sooner than this is made anew.
RENEWED_BEFORE = timedelta(days=30)
# Clocks differ a little.
BACKDATED = timedelta(hours=1)

# The loopback names are always certified; where the receiver has another host to itself, that one's is, too.
HOST_NAMES = ("localhost",)
ADDRESSES = ("127.0.0.1", "::1")


class CertificateFiles(NamedTuple):
    """Where the certificates lie: what clients trust, what the server shows, and its key."""

    authority: Path
    server: Path
    server_key: Path


class _Pair(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure_certificates(folder: Path, now: datetime, other_names: Sequence[str] = ()) -> CertificateFiles:
    """Return certificates that hold for a while yet, making in `folder` what is missing or about to end.

    The server's is for the loopback names and for `other_names`, and made anew when it lacks one of them.
    The server's is renewed under the same authority, so that who trusts that one need not do anything.
    LocalServerError when the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority = _load(folder / "ca.pem", folder / "ca-key.pem", now)
        server = _load(folder / "server.pem", folder / "server-key.pem", now)
        if authority is None:
            authority, server = _new_authority(now), None
            _save(authority, folder / "ca.pem", folder / "ca-key.pem")
        names = tuple(dict.fromkeys((*HOST_NAMES, *other_names)))
        if server is None or not _is_issued_by(server, authority) or not _certifies(server, names):
            _save(_new_server(authority, now, names), folder / "server.pem", folder / "server-key.pem")
    except OSError as error:
        raise LocalServerError(f"Certificates cannot be kept in {folder}: {error.strerror}.") from error
    return CertificateFiles(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem")


def _new_authority(now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Meterpost demo certificate authority")
    builder = _builder(name, name, key, now, AUTHORITY_LASTS)
    usage = _usage(signs_certificates=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return _Pair(builder.sign(key, hashes.SHA256()), key)


def _new_server(authority: _Pair, now: datetime, host_names: Sequence[str]) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name("localhost"), authority.certificate.subject, key, now, SERVER_LASTS)
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in host_names]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName(names), False),
        (authority_key, False),
    ]
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return _Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _is_issued_by(server: _Pair, authority: _Pair) -> bool:
    try:
        server.certificate.verify_directly_issued_by(authority.certificate)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is made anew
        return False
    return True


def _certifies(server: _Pair, names: Sequence[str]) -> bool:
    try:
        found = server.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return set(names) <= set(found.get_values_for_type(x509.DNSName))


def _load(certificate_file: Path, key_file: Path, now: datetime) -> _Pair | None:
    """Return a pair that is complete, sound and holds for a while yet; None otherwise."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    holds = certificate.not_valid_before_utc <= now and now + RENEWED_BEFORE < certificate.not_valid_after_utc
    return _Pair(certificate, key) if holds else None


def _save(pair: _Pair, certificate_file: Path, key_file: Path) -> None:
    private = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key_file, private, mode=0o600)
    _write(certificate_file, pair.certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _write(file: Path, content: bytes, *, mode: int) -> None:
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    fresh.replace(file)
