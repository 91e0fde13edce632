"""A real Kafka whose listeners want TLS, a login, or both, under an authority of the test's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.local.certificates import ensure_certificates
from services.local.kafka_libraries import ensure_kafka_libraries
from services.local.kafka_server import KafkaServer
from services.local.ports import LOOPBACK, free_port
from services.platform.clock import SystemClock
from tests.support.stack import JAVA_FLAGS

USER = "meterpost"
PASSWORD = "known-to-the-broker"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_STOP_TIMEOUT_S = 5.0
LISTENERS = {
    "LOGIN": "SASL_PLAINTEXT",
    "TLS": "SSL",
    "MUTUAL": "SSL",  # wants a certificate of ours
    "BOTH": "SASL_SSL",
    "MISNAMED": "SASL_SSL",  # its certificate is for "localhost" alone, and it names itself 127.0.0.1
}
_PROPERTIES = """
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={authority}
listener.name.misnamed.ssl.keystore.type=PEM
listener.name.misnamed.ssl.keystore.location={misnamed}
listener.name.mutual.ssl.client.auth=required
connection.failed.authentication.delay.ms=10
"""
_LOGINS = """\
listener.name.{name}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
listener.name.{name}.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{name}.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


class SecuredKafka(KafkaServer):
    """Has the plain listener of its base, by which it is watched, and one of each kind of `_LISTENERS`."""

    def __init__(self, folder: Path) -> None:
        self.certificates = ensure_certificates(folder / "certificates", SystemClock().now())
        authority_key = folder / "certificates" / "ca-key.pem"
        self.client_certificate, self.client_key = folder / "client.pem", folder / "client-key.pem"
        certificate, key = issued_by(self.certificates.authority, authority_key, "meterpost")
        self.client_certificate.write_text(certificate, "ascii")
        self.client_key.write_text(key, "ascii")
        self._keystore, self._misnamed = folder / "keystore.pem", folder / "misnamed.pem"
        self._keystore.write_text(
            self.certificates.server_key.read_text("ascii") + self.certificates.server.read_text("ascii"), "ascii"
        )
        self._misnamed.write_text("".join(issued_by(self.certificates.authority, authority_key, "localhost")), "ascii")
        self.plain_password = PASSWORD
        """What PLAIN takes from the next start on."""
        self._ports = {name: free_port() for name in LISTENERS}
        self._format_options = [
            f"--add-scram={mechanism}=[name={USER},password={PASSWORD}]" for mechanism in MECHANISMS[1:]
        ]
        super().__init__(data_folder=folder / "kafka", libraries=ensure_kafka_libraries(), java_flags=JAVA_FLAGS)

    def address(self, listener: str, host: str = LOOPBACK) -> str:
        """Return where a listener is."""
        return f"{host}:{self._ports[listener]}"

    def security(self, listener: str, mechanism: str = "SCRAM-SHA-512", **more: str) -> dict[str, str]:
        """Return the variables that are right for a listener; `more` are set or changed, by their names' last part."""
        protocol = LISTENERS[listener]
        told = {"SECURITY_PROTOCOL": protocol}
        if protocol.startswith("SASL_"):
            told |= {"SASL_MECHANISM": mechanism, "SASL_USERNAME": USER, "SASL_PASSWORD": PASSWORD}
        if protocol.endswith("SSL"):
            told["SSL_CA_FILE"] = str(self.certificates.authority)
        if listener == "MUTUAL":
            told["SSL_CERTIFICATE_FILE"] = str(self.client_certificate)
            told["SSL_KEY_FILE"] = str(self.client_key)
        return {f"METERPOST_KAFKA_{name}": value for name, value in {**told, **more}.items()}

    def _write_properties(self, name: str, *, port: int, controller_port: int, records: str = "records") -> None:
        super()._write_properties(name, port=port, controller_port=controller_port, records=records)
        file = self._folder / name
        more = {
            "listeners": [f"{name}://{LOOPBACK}:{self._ports[name]}" for name in LISTENERS],
            "advertised.listeners": [f"{name}://{LOOPBACK}:{self._ports[name]}" for name in LISTENERS],
            "listener.security.protocol.map": [f"{name}:{protocol}" for name, protocol in LISTENERS.items()],
        }
        text = "\n".join(
            ",".join([line, *more.get(line.partition("=")[0], [])]) for line in file.read_text("ascii").splitlines()
        )
        files = {"keystore": self._keystore, "misnamed": self._misnamed, "authority": self.certificates.authority}
        text += _PROPERTIES.format(**files)
        for listener, protocol in LISTENERS.items():
            if protocol.startswith("SASL_"):
                text += _LOGINS.format(name=listener.lower(), user=USER, password=self.plain_password)
        file.write_text(text, "ascii")


def issued_by(authority_file: Path, authority_key_file: Path, name: str) -> tuple[str, str]:
    """Return a certificate for a host or client of this name alone, and its key, both in PEM form."""
    authority = x509.load_pem_x509_certificate(authority_file.read_bytes())
    authority_key = serialization.load_pem_private_key(authority_key_file.read_bytes(), password=None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), SystemClock().now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"), private.decode("ascii")


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Run one; it ends with the test."""
    server = SecuredKafka(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop(_STOP_TIMEOUT_S)
