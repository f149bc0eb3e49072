"""Bind, TLS, token and certificate over the wire, rotation, and what is refused at the start."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2
from mlxrt_client import Client
from mlxrt_client.v1 import model_pb2

from mlxrt.config import ConfigError, load_settings
from mlxrt.server import Server
from mlxrt.testing import FakeEngine

TOKEN = "token-of-the-tests-0123"
DAY = datetime.timedelta(days=1)
Launch = Callable[..., Any]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path

    def pem(self) -> tuple[bytes, bytes]:
        """Key and certificate, in gRPC's order."""
        return self.key.read_bytes(), self.certificate.read_bytes()


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._own = self._sign(self._key.public_key(), name, None, authority=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._own.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, host: str | None = "127.0.0.1", expired: bool = False) -> Pair:
        """A new certificate for `host`."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._sign(key.public_key(), name, host, expired=expired)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )  # fmt: skip
        return pair

    def _sign(
        self, key: Any, name: str, host: str | None, *, authority: bool = False,
        expired: bool = False,
    ) -> x509.Certificate:  # fmt: skip
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if authority else self._own.subject
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * DAY).not_valid_after(now - DAY if expired else now + DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )  # fmt: skip
        if host is not None:
            address = x509.IPAddress(ipaddress.ip_address(host))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(TOKEN + "\n")
    return file


def tls(pair: Pair, client_ca: Path | None = None) -> dict[str, Any]:
    """Settings of TLS."""
    files = {"certificate_file": pair.certificate, "key_file": pair.key}
    return files | ({"client_ca_file": client_ca} if client_ca else {})


def ask(
    server: Any,
    trusted: Path | None,
    own: Pair | None = None,
    token: str | None = None,
) -> grpc.StatusCode:
    """The status of GetServerInfo through a channel of its own; plain where nobody is trusted."""
    target = server.server.address.replace("0.0.0.0", "127.0.0.1")
    options = [("grpc.use_local_subchannel_pool", 1)]
    if trusted is None:
        channel = grpc.insecure_channel(target, options)
    else:
        key, chain = own.pem() if own else (None, None)
        credentials = grpc.ssl_channel_credentials(trusted.read_bytes(), key, chain)
        channel = grpc.secure_channel(target, credentials, options)
    headers = (("authorization", f"Bearer {token}"),) if token else ()
    with channel:
        run = channel.unary_unary("/mlxrt.v1.ModelService/GetServerInfo")
        try:
            run(b"", timeout=60, metadata=headers)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


OK = grpc.StatusCode.OK
NO_CONNECTION = grpc.StatusCode.UNAVAILABLE
NOT_KNOWN = grpc.StatusCode.UNAUTHENTICATED


@dataclass(frozen=True)
class Door:
    """One way to listen: where, and what is asked of callers."""

    bind: str
    tls: bool
    mutual: bool
    token: bool

    def settings(self, server: Pair, client_ca: Path, token_file: Path) -> dict[str, Any]:
        """As load_settings takes them."""
        files: dict[str, Any] = tls(server) if self.tls else {}
        if self.mutual:
            files["client_ca_file"] = client_ca
        found = {"tls": files, "token_file": token_file if self.token else None}
        return found if self.bind == "unix" else {**found, "address": self.bind}

    def refusal(self) -> str | None:
        """What the refusal of such a configuration names; None where it is served."""
        if self.mutual and not self.tls:
            return "tls.client_ca_file"
        if self.bind == "unix":
            return "unix socket" if self.tls else None
        if self.bind == EVERYWHERE and not self.tls:
            return "tls.certificate_file"
        if self.bind == EVERYWHERE and not (self.mutual or self.token):
            return "tls.client_ca_file or token_file"
        return None

    def answer(self, in_tls: bool, certificate: str, token: str | None) -> grpc.StatusCode:
        """What a call ends with that comes in this way."""
        if in_tls != self.tls or (self.mutual and certificate != "right"):
            return NO_CONNECTION
        return OK if token == TOKEN or not self.token else NOT_KNOWN


LOOPBACK, EVERYWHERE = "127.0.0.1:0", "0.0.0.0:0"
DOORS = [
    Door(bind, *chosen)
    for bind in ("unix", LOOPBACK, EVERYWHERE)
    for chosen in itertools.product([False, True], repeat=3)
]
"""All there are: bind x TLS x client certificates x token."""


def called(door: Door) -> str:
    parts = ("tls", door.tls), ("mutual", door.mutual), ("token", door.token)
    return "-".join([door.bind, *(name for name, asked in parts if asked)])


@pytest.mark.parametrize("door", [d for d in DOORS if d.refusal()], ids=called)
def test_each_way_to_listen_that_is_refused(
    authority: Authority, token_file: Path, door: Door
) -> None:
    settings = door.settings(authority.issue("server"), authority.file, token_file)
    with pytest.raises(ConfigError, match=door.refusal()):
        load_settings(None, **{"address": "unix:/tmp/s", **settings})


@pytest.mark.parametrize("door", [d for d in DOORS if not d.refusal()], ids=called)
def test_each_certificate_and_token(
    launch: Launch, tmp_path: Path, authority: Authority, token_file: Path, door: Door
) -> None:
    server = launch(**door.settings(authority.issue("server"), authority.file, token_file))
    own = {
        "none": None, "right": authority.issue("client"),
        "wrong CA": Authority(tmp_path, "stranger").issue("other"),
        "expired": authority.issue("late", expired=True),
    }  # fmt: skip
    calls = [(False, "none"), *((True, name) for name in (own if door.tls else ["none"]))]
    for in_tls, name in calls:
        for token in (None, "wrong-token-0123456789", TOKEN):
            got = ask(server, authority.file if in_tls else None, own[name], token)
            assert got is door.answer(in_tls, name, token), (in_tls, name, token)


def test_no_way_to_listen_is_left_out() -> None:
    served = {door for door in DOORS if not door.refusal()}
    assert len(set(DOORS)) == 24 and len(served) == 11
    assert all(d.tls and (d.mutual or d.token) for d in served if d.bind == EVERYWHERE)


@pytest.mark.parametrize("fault", ["wrong CA", "expired", "wrong SAN", "no SAN"])
def test_a_client_refuses_a_server_that_it_can_not_trust(
    launch: Launch, tmp_path: Path, authority: Authority, fault: str
) -> None:
    host = {"wrong SAN": "10.1.2.3", "no SAN": None}.get(fault, "127.0.0.1")
    signer = Authority(tmp_path, "stranger") if fault == "wrong CA" else authority
    pair = signer.issue("server", host=host, expired=fault == "expired")
    server = launch(address="127.0.0.1:0", tls=tls(pair))
    assert ask(server, authority.file) is NO_CONNECTION


def test_certificates_rotate_without_a_restart(
    launch: Launch, tmp_path: Path, authority: Authority
) -> None:
    pair = authority.issue("server")
    server = launch(address="127.0.0.1:0", tls=tls(pair))
    assert ask(server, authority.file) is OK
    successor = Authority(tmp_path, "successor")
    fresh = successor.issue("fresh")
    os.replace(fresh.certificate, pair.certificate)
    assert ask(server, authority.file) is OK  # the key does not fit yet: the old pair stays
    assert ask(server, successor.file) is NO_CONNECTION
    os.replace(fresh.key, pair.key)
    assert ask(server, successor.file) is OK
    assert ask(server, authority.file) is NO_CONNECTION


def test_probes_need_neither_tls_nor_token_and_get_health_alone(
    launch: Launch, authority: Authority, token_file: Path
) -> None:
    server = launch(
        address="127.0.0.1:0", tls=tls(authority.issue("server")), token_file=token_file,
        health_address="127.0.0.1:0",
    )  # fmt: skip
    with grpc.insecure_channel(server.server.health_address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        assert check(b"", timeout=60).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/mlxrt.v1.ModelService/GetServerInfo")(b"", timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_client_of_python_with_certificate_and_token(
    launch: Launch, authority: Authority, token_file: Path
) -> None:
    server = launch(
        address="127.0.0.1:0", tls=tls(authority.issue("server"), authority.file),
        token_file=token_file,
    )  # fmt: skip
    key, chain = authority.issue("client").pem()
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes(), key, chain)
    with Client(server.server.address, credentials=credentials, token=TOKEN) as client:
        assert client.server_info().state == model_pb2.SERVER_STATE_SERVING


def test_files_that_are_no_pair_are_refused_at_the_start(
    tmp_path: Path, authority: Authority
) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("no certificate")
    for files in (
        {"certificate_file": one.certificate, "key_file": two.key},
        {"certificate_file": rubbish, "key_file": one.key},
        {"certificate_file": one.certificate, "key_file": tmp_path / "absent"},
        tls(one, rubbish),
    ):
        settings = load_settings(None, fake=True, address="127.0.0.1:0", tls=files)

        async def attempt(settings: Any = settings) -> None:
            await Server(settings, FakeEngine()).start()

        with pytest.raises(ConfigError, match="tls"):
            asyncio.run(attempt())


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ([], "tls.certificate_file"),
        (["--set", "token_file=/tmp/t"], "tls.certificate_file"),
        (["--set", "tls.certificate_file=/tmp/c", "--set", "tls.key_file=/tmp/k"], "token_file"),
    ],
)
def test_a_bind_that_others_reach_exits_with_2_and_says_what_to_set(
    options: list[str], needed: str
) -> None:
    command = [sys.executable, "-P", "-m", "mlxrt", "serve", "--fake", "--address", "0.0.0.0:0"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert needed in done.stderr.replace("\n", "")


@pytest.mark.parametrize(
    "files", [{"certificate_file": "c"}, {"key_file": "k"}, {"client_ca_file": "a"}]
)
def test_half_a_configuration_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="certificate_file"):
        load_settings(None, tls=files)
    with pytest.raises(ConfigError, match="unix socket"):
        load_settings(None, address="unix:/tmp/s", tls={"certificate_file": "c", "key_file": "k"})
