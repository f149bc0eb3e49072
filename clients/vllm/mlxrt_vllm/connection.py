"""The server: its facts, one session with its blocks, and one stream for the steps."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future

from mlxrt_client import Client, RetryPolicy, v1
from mlxrt_client.errors import FATAL, MlxrtError, OutOfBlocksError, TransportError

from mlxrt_vllm.sequences import Pool
from mlxrt_vllm.settings import Settings


class ServerLostError(RuntimeError):
    """The server can't go on with this session: it restarted, is gone, or gave it to another.

    vLLM has no way to be told that all KV is lost: its engine ends with this, and no token that was
    not computed is ever delivered. Start it again once the server serves.
    """


class Connection:
    """One session at the server. Broken connections mend themselves inside it: the stream connects
    again and repeats what is unanswered with the same step numbers.

    Attributes:
        server, model: the facts of the server and of its model.
    """

    def __init__(self, settings: Settings) -> None:
        """Connects and asks for the facts.

        Raises:
            ServerLostError: no server answers at the address in `patience_s`.
        """
        self.settings = settings
        retry = RetryPolicy(patience_s=settings.patience_s)
        self._client = Client(
            settings.address,
            credentials=settings.credentials(),
            token=settings.token(),
            retry=retry,
        )
        try:
            self.server = self._client.server_info()
            self.model = self._client.model_info()
        except MlxrtError as error:
            self._client.close()
            raise ServerLostError(f"no mlxrt server at {settings.address}: {error}") from error
        self._session = self._client.open_session(
            lease_ttl_ms=settings.lease_ttl_ms, client_name="vllm"
        )
        self._stream = self._session.stream()

    def lease(self, block_count: int) -> Pool:
        """Leases `block_count` less one blocks in every group; vLLM's block 0 is the hole.

        Waits up to `patience_s` for them: a vLLM that was killed holds its blocks until its lease
        ends.

        Raises:
            ValueError: the pool has fewer free: another session holds some.
        """
        counts = {group.group: block_count - 1 for group in self.model.groups}
        deadline_s = time.monotonic() + self.settings.patience_s
        while True:
            try:
                blocks = self._session.allocate_blocks(counts)
                return Pool([[0, *blocks[group.group]] for group in self.model.groups])
            except OutOfBlocksError as error:
                delay_s = error.retry_delay_s
                if delay_s is None or time.monotonic() + delay_s > deadline_s:
                    raise ValueError(
                        f"the server has no {block_count - 1} blocks for vLLM ({error}): another "
                        "session holds some of its pool; ask for fewer by --num-gpu-blocks-override"
                    ) from error
            time.sleep(delay_s)

    def submit(self, step: v1.StepRequest) -> Future[v1.StepResponse]:
        """Sends a step; waits where the server's limit of steps in flight is reached.

        Raises:
            ServerLostError: the session is lost.
        """
        try:
            return self._stream.submit(step)
        except MlxrtError as error:
            raise self._loss(error) from error

    def sample(self, step: Future[v1.StepResponse], masks: list[v1.TokenMask]) -> None:
        """Sends the masks of a step that deferred its sampling; a refusal shows in its answer.

        Raises:
            ServerLostError: the session is lost.
        """
        sampled = self._stream.sample(step, masks)
        sampled.add_done_callback(lambda done: self._refused(step, done))

    @staticmethod
    def _refused(step: Future[v1.StepResponse], sampled: Future[None]) -> None:
        """Ends a step whose masks were refused: it would wait until the lease ends."""
        error = sampled.exception()
        if error is not None and not step.done():
            step.set_exception(error)

    def answer(self, future: Future[v1.StepResponse]) -> v1.StepResponse:
        """Waits for a step's answer.

        Raises:
            ServerLostError: there will be none.
            MlxrtError: the step was refused or discarded: a defect, here or there.
        """
        try:
            return future.result()
        except MlxrtError as error:
            if isinstance(error, (*FATAL, TransportError)):
                raise self._loss(error) from error
            raise

    @property
    def reconnections(self) -> int:
        """Number of times that the stream connected again."""
        return max(0, self._stream.connection_count - 1)

    def check(self) -> None:
        """Raises ServerLostError where the session is known to be lost."""
        if self._session.lost is not None:
            raise self._loss(self._session.lost)

    def _loss(self, error: MlxrtError) -> ServerLostError:
        address = self.settings.address
        try:
            probe = RetryPolicy(patience_s=0, attempt_timeout_s=2.0)
            request = v1.GetServerInfoRequest()
            now = self._client.call(self._client.models.GetServerInfo, request, retry=probe)
        except MlxrtError:
            return ServerLostError(f"the mlxrt server at {address} is gone: {error}")
        if now.instance_id != self.server.instance_id:
            return ServerLostError(
                f"the mlxrt server at {address} restarted (instance {self.server.instance_id} is "
                f"now {now.instance_id}): all KV is lost. Start vLLM again. ({error})"
            )
        return ServerLostError(f"the session at the mlxrt server at {address} is lost: {error}")

    def close(self) -> None:
        """Ends stream, session and channel; a server that is gone is not waited for."""
        self._stream.cancel()
        with contextlib.suppress(MlxrtError):  # its lease ends it
            self._session.close()
        self._client.close()
