"""Bearer tokens from a file, checked before a call's message is looked at."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc
import structlog

from mlxrt.config import ConfigError
from mlxrt.errors import MlxrtError, Reason
from mlxrt.server.counted import counted_as
from mlxrt.server.handler import Context, abort
from mlxrt.telemetry.tallies import Tallies

TOKENS_MAX = 2
TOKEN_CHARACTERS_MIN = 16
LOOK_INTERVAL_S = 1.0
"""Least time between two looks whether the file has changed, seconds."""
_HEADER = "authorization"
_SCHEME = "bearer "
_log = structlog.get_logger("mlxrt.server")


class TokenFile:
    """The tokens that are valid now: one, or two while callers move from the old to the new.

    Only digests are kept, and no token is ever logged. A file that changes to something unusable
    is reported, and the tokens known stay valid.

    Args:
        clock: a monotonic clock, seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the file.

        Raises:
            ConfigError: it can't be read, or holds no token, too many, or a short one.
        """
        self._path = path
        self._clock = clock
        try:
            self._stamp = self._read_stamp()
            self._digests = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"token_file: {error}") from error
        self._looked_s = clock()

    def knows(self, token: str) -> bool:
        """Whether the token is valid; takes the same time whichever it is, and whichever not."""
        self._look()
        digest = hashlib.sha256(token.encode()).digest()
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0

    def _look(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_INTERVAL_S:
            return
        self._looked_s = now_s
        try:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._digests = self._read()
        except (OSError, ValueError) as error:
            _log.error("tokens kept: the token file can't be used", error=str(error))
            return
        _log.info("tokens read again", file=str(self._path), count=len(self._digests))

    def _read_stamp(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[bytes]:
        lines = [line.strip() for line in self._path.read_text(encoding="utf-8").splitlines()]
        tokens = [line for line in lines if line]
        if not 1 <= len(tokens) <= TOKENS_MAX:
            raise ValueError(f"{self._path} has {len(tokens)} lines; 1 or 2 tokens are needed")
        if any(len(token) < TOKEN_CHARACTERS_MIN for token in tokens):
            raise ValueError(
                f"{self._path}: a token has at least {TOKEN_CHARACTERS_MIN} characters"
            )
        if not all(token.isascii() and token.isprintable() for token in tokens):
            raise ValueError(f"{self._path}: a token is printable ASCII")
        return [hashlib.sha256(token.encode()).digest() for token in tokens]


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets in only calls with a token of the file, every rpc alike."""

    def __init__(self, tokens: TokenFile, tallies: Tallies) -> None:
        self._tokens = tokens
        self._tallies = tallies
        # The handler's kind does not matter: it ends the call before a message is read.
        self._refusing = grpc.stream_stream_rpc_method_handler(_refuse)
        self._counted: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: Any,
    ) -> grpc.RpcMethodHandler | None:
        """As grpc.aio.ServerInterceptor: the handler, or one that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None or self._admits(handler_call_details.invocation_metadata):
            return handler
        method = handler_call_details.method
        if method not in self._counted:
            self._counted[method] = counted_as(method, handler, self._refusing, self._tallies)
        return self._counted[method]

    def _admits(self, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        sent = [value for key, value in metadata or () if key == _HEADER]
        if len(sent) != 1 or not isinstance(sent[0], str):
            return False
        scheme, token = sent[0][: len(_SCHEME)], sent[0][len(_SCHEME) :].strip()
        return scheme.lower() == _SCHEME and self._tokens.knows(token)


async def _refuse(_requests: object, context: Context) -> NoReturn:
    await abort(
        context,
        MlxrtError(
            Reason.UNAUTHENTICATED_CALLER,
            "the metadata `authorization` has no token that this server knows; send `Bearer` and "
            "a token of its token_file",
        ),
    )
