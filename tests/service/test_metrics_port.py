"""The port of the metrics: off, taken, open to others; a scrape of a server that hangs or loads."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxrt.config import ConfigError, Settings, load_settings
from mlxrt.server.scrape import Observed, Scrape
from mlxrt.testing.server_process import ServerProcess

Launch = Callable[..., Any]
DEFAULT = Settings.model_fields["metrics_address"].default


@pytest.fixture
def taken() -> Iterator[str]:
    """An address of the loopback that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.read().decode()


def test_off_listens_nowhere(launch: Launch) -> None:
    server = launch(metrics_address="off")
    assert server.server.metrics_address == "off"


def test_the_port_closes_with_the_server(launch: Launch) -> None:
    server = launch(metrics_address="127.0.0.1:0")
    address = server.server.metrics_address
    assert "mlxrt_ready 1.0" in scrape(address)
    server.close()
    with pytest.raises(urllib.error.URLError):
        scrape(address)


def test_an_address_of_ipv6(launch: Launch) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    address = launch(metrics_address="[::1]:0").server.metrics_address
    assert re.fullmatch(r"\[::1\]:\d+", address)
    assert "mlxrt_ready" in scrape(address)


@pytest.mark.parametrize("given", ["option", "environment", "file"])
def test_a_port_that_is_asked_for_and_taken_exits_with_2(
    taken: str, socket_folder: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-P", "-m", "mlxrt", "serve", "--fake"]
    command += ["--address", f"unix:{socket_folder / 's'}"]
    if given == "option":
        command += ["--set", f"metrics_address={taken}"]
    elif given == "environment":
        monkeypatch.setenv("MLXRT_METRICS_ADDRESS", taken)
    else:
        (socket_folder / "toml").write_text(f'metrics_address = "{taken}"\n')
        command += ["--config", str(socket_folder / "toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "metrics_address" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "[::]:9464", "example.org:9464", "10.0.0.1:1"])
def test_a_bind_that_others_reach_needs_its_setting(address: str) -> None:
    with pytest.raises(ConfigError, match="metrics_beyond_loopback"):
        load_settings(metrics_address=address)
    allowed = load_settings(metrics_address=address, metrics_beyond_loopback=True)
    assert allowed.metrics_address == address


@pytest.mark.parametrize("address", ["unix:/tmp/m", "9464", "127.0.0.1", "127.0.0.1:x", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="metrics_address"):
        load_settings(metrics_address=address)


def test_everywhere_where_it_is_allowed(launch: Launch) -> None:
    server = launch(metrics_address="0.0.0.0:0", metrics_beyond_loopback=True)
    port = server.server.metrics_address.rpartition(":")[2]
    assert "mlxrt_ready 1.0" in scrape(f"127.0.0.1:{port}")


def test_who_connects_and_says_nothing_is_dropped_in_silence(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mlxrt.telemetry.endpoint.IDLE_S", 0.2)
        impatient = launch(metrics_address="127.0.0.1:0").server.metrics_address
    host, _, port = impatient.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as idle:
        assert idle.recv(1) == b""
    # A page is asked for where the machine has time for it.
    address = launch(metrics_address="127.0.0.1:0").server.metrics_address
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as rude:
        rude.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert "mlxrt_ready" in scrape(address)
    assert "Traceback" not in capfd.readouterr().err


def test_a_loop_that_hangs_leaves_the_rest_of_the_page(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxrt.server.scrape.CENSUS_WAIT_S", 60)
    server = launch(metrics_address="127.0.0.1:0")
    address = server.server.metrics_address
    assert "mlxrt_sessions_open 0.0" in scrape(address)
    hangs, goes_on = threading.Event(), threading.Event()
    server.loop.call_soon_threadsafe(lambda: (hangs.set(), goes_on.wait(60)))
    assert hangs.wait(60)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("mlxrt.server.scrape.CENSUS_WAIT_S", 0.2)
            page = scrape(address)
    finally:
        goes_on.set()
    assert "mlxrt_sessions_open 0.0" not in page
    assert "mlxrt_executor_heartbeat_age_seconds 0.0" in page
    assert "mlxrt_sessions_open 0.0" in scrape(address)


def test_a_loop_that_has_ended_leaves_the_rest_of_the_page(launch: Launch) -> None:
    server = launch()
    seen: Observed = server.server._observed
    loop = asyncio.new_event_loop()
    loop.close()
    families = {family.name: family for family in Scrape(seen, loop).collect()}
    assert not families["mlxrt_sessions_open"].samples and families["mlxrt_ready"].samples


def test_two_servers_of_one_machine(socket_folder: Path) -> None:
    """The second one goes on without metrics and says so."""
    default = ["--fake", "--set", "log_format=json"]
    port = int(DEFAULT.rpartition(":")[2])
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # somebody has it already: as good
            # Shared with other runs of this test, which would let it go at any time.
            listening = socket.create_server(("127.0.0.1", port), reuse_port=True)
            held.enter_context(listening)
        address = f"unix:{socket_folder / 'second'}"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlxrt", "serve", *default, "--address", address],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        said = ""
        while '"serving"' not in said:
            said = process.stderr.readline()
            assert said, "it ended"
            if "no metrics" in said:
                warned = said
        process.terminate()
        assert process.wait(60) == 0
    assert '"warning"' in warned and DEFAULT in warned


def test_a_server_of_the_tests_has_no_metrics() -> None:
    with ServerProcess(["--fake"]) as server:
        assert '"metrics": "off"' in server.log
