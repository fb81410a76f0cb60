"""Certificates of one plane: three authorities, serving and client certificates, the ServiceAccount key.

etcd and the front proxy have authorities of their own, as kubeadm does it: otherwise a client certificate
that the cluster signs for a user would open etcd, or let its bearer name himself in request headers.
Keys are P-256, which is fast to make. Everything is valid for a week; a plane lives for minutes.
"""

import base64
import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import PlaneError

VALID_DAYS = 7
# What clients inside a cluster call the API server; the address is the first of the service range.
API_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
API_SERVER_ADDRESSES = ("127.0.0.1", "10.96.0.1")

ADMIN = "admin"
CONTROLLER_MANAGER = "controller-manager"
SCHEDULER = "scheduler"
KWOK = "kwok"
# name of the file -> common name and group, by which RBAC knows the component.
CLIENTS = {
    ADMIN: ("farebox-test-admin", "system:masters"),
    # With --use-service-account-credentials=false all controllers act as this one user, and the role of
    # that name is made for the other case: it lacks the controllers' own rights.
    CONTROLLER_MANAGER: ("system:kube-controller-manager", "system:masters"),
    SCHEDULER: ("system:kube-scheduler", None),
    # kwok plays every kubelet at once, for which RBAC has no stock role.
    KWOK: ("kwok", "system:masters"),
}


@dataclass(frozen=True)
class Authority:
    """A certificate authority: signs, and writes `<name>.crt` and `<name>.key`."""

    directory: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, directory: Path, name: str) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(f"farebox-{name}", None)
        certificate = (
            _builder(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(directory, name, certificate, key)
        return cls(directory, certificate, key)

    def client(self, name: str, common_name: str, group: str | None) -> None:
        """Write a client certificate; the common name is the user, `group` its only group."""
        self._issue(name, _subject(common_name, group), [ExtendedKeyUsageOID.CLIENT_AUTH], None)

    def server(self, name: str, names: tuple[str, ...], addresses: tuple[str, ...]) -> None:
        """Write a certificate that serves under these names and addresses, and calls its peers with it."""
        alternative = x509.SubjectAlternativeName(
            [*(x509.DNSName(n) for n in names), *(x509.IPAddress(ipaddress.ip_address(a)) for a in addresses)]
        )
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        self._issue(name, _subject(f"farebox-{name}", None), usage, alternative)

    def _issue(
        self,
        name: str,
        subject: x509.Name,
        usage: list[x509.ObjectIdentifier],
        alternative: x509.SubjectAlternativeName | None,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self.certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        )
        if alternative is not None:
            builder = builder.add_extension(alternative, critical=False)
        _write(self.directory, name, builder.sign(self.key, hashes.SHA256()), key)


def create_pki(directory: Path) -> None:
    """Write all keys and certificates of a plane into `directory`, or leave those of an earlier start.

    Complete or absent: they are made beside it and moved there as a whole.
    """
    if directory.exists():
        return
    making = directory.with_name(f"{directory.name}.{os.getpid()}")
    making.mkdir(mode=0o700)
    cluster = Authority.create(making, "ca")
    cluster.server("apiserver", API_SERVER_NAMES, API_SERVER_ADDRESSES)
    for name, (common_name, group) in CLIENTS.items():
        cluster.client(name, common_name, group)
    etcd = Authority.create(making, "etcd-ca")
    etcd.server("etcd", ("localhost",), ("127.0.0.1",))
    etcd.client("apiserver-etcd", "farebox-apiserver", None)
    front_proxy = Authority.create(making, "front-proxy-ca")
    front_proxy.client("front-proxy", "front-proxy-client", None)
    _service_account_keys(making)
    try:
        making.rename(directory)
    except OSError as error:
        raise PlaneError(f"cannot write the certificates to {directory}: {error}") from error


def base64_of(path: Path) -> str:
    """A file as kubeconfigs embed it."""
    return base64.b64encode(path.read_bytes()).decode()


def _service_account_keys(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    _write_private(directory / "service-account.key", _pem(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (directory / "service-account.pub").write_bytes(public)


def _subject(common_name: str, group: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if group is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # A clock that was set back a little must not make a fresh certificate one of the future.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{usage: allowed.get(usage, False) for usage in every})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_private(directory / f"{name}.key", _pem(key))


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
