"""TLS: certificates from files, checked before they are used and read again when they change."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc
import structlog

from mlxrt.config import ConfigError, TlsSettings

Stamp = tuple[tuple[int, int, int], ...]
_log = structlog.get_logger("mlxrt.server")


def server_credentials(settings: TlsSettings) -> grpc.ServerCredentials:
    """Credentials that follow their files.

    Raises:
        ConfigError: a file can't be read, holds no PEM, or key and certificate are no pair.
    """
    certificates = CertificateFiles(settings)
    return grpc.dynamic_ssl_server_credentials(
        certificates.load(), certificates.fetch, settings.client_ca_file is not None
    )


class CertificateFiles:
    """The files of TlsSettings. `fetch` is called by gRPC's threads, at each handshake.

    New files are taken once they are whole and belong together; until then, as while one of two is
    replaced, the last good ones stay in force.
    """

    def __init__(self, settings: TlsSettings) -> None:
        assert settings.certificate_file is not None and settings.key_file is not None
        self._certificate = settings.certificate_file
        self._key = settings.key_file
        self._client_ca = settings.client_ca_file
        self._stamp: Stamp | None = None

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Reads the files as they are.

        Raises:
            ConfigError: as `server_credentials`.
        """
        try:
            stamp = self._read_stamp()
            configuration = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"tls: {error}") from error
        self._stamp = stamp
        return configuration

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration where the files changed to a good one, else None. Never raises."""
        stamp: Stamp | None = None
        try:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            configuration = self._read()
            if self._read_stamp() != stamp:
                self._stamp = None  # changed while it was read: look again at the next handshake
                return None
        except (OSError, ValueError) as error:
            _log.error("certificates kept: the new files can't be used", error=str(error))
            return None
        _log.info("certificates read again", file=str(self._certificate))
        return configuration

    def _files(self) -> Sequence[Path]:
        files = (self._certificate, self._key, self._client_ca)
        return [file for file in files if file is not None]

    def _read_stamp(self) -> Stamp:
        found = [file.stat() for file in self._files()]
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """The files' content, checked; raises OSError (ssl.SSLError is one) or ValueError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, _no_passphrase)
        except ssl.SSLError as error:
            raise ValueError(
                f"{self._certificate} and {self._key} are no certificate and its key: {error}"
            ) from error
        authorities = None
        if self._client_ca is not None:
            authorities = self._client_ca.read_bytes()
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise ValueError(f"{self._client_ca} holds no certificate: {error}") from error
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authorities)


def _no_passphrase() -> str:
    raise ValueError("the private key has a passphrase, and nobody is there to type it")
