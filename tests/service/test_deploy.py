"""The files of `mlxrt deploy print`: their form, and that the very commands in them serve."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import plistlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlxrt.cli import main
from mlxrt.config import Settings, load_settings
from mlxrt.deploy.toml_text import toml_text
from mlxrt.telemetry.metrics import METRICS, MetricKind
from mlxrt.testing.server_process import waiting_channel

TIMEOUT_S = 120
SUFFIXES = {MetricKind.HISTOGRAM: ("_bucket", "_sum", "_count")}
NAMED = re.compile(r"\b(?:mlxrt|grpc_server)_[a-z_]+\b")


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    output: str
    errors: str


def attempt(*arguments: str, **environment: str) -> Outcome:
    """Runs `mlxrt deploy print` in this process, which saves its imports."""
    output, errors = io.StringIO(), io.StringIO()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLXRT_")}
    with (
        mock.patch.dict(os.environ, clean | environment, clear=True),
        mock.patch.object(sys, "argv", ["mlxrt", "deploy", "print", *arguments]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Outcome(int(ended.value.code or 0), output.getvalue(), errors.getvalue())


def printed(*arguments: str, **environment: str) -> str:
    """What `mlxrt deploy print` prints; it must end well."""
    outcome = attempt(*arguments, **environment)
    assert (outcome.code, outcome.errors) == (0, "")
    return outcome.output


@contextlib.contextmanager
def running(
    command: list[str], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command as a process; it must drain and exit 0 at SIGTERM."""
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.wait()


def assert_serving(address: str, service: str = "") -> None:
    """Waits until health says SERVING."""
    with waiting_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=service), wait_for_ready=True, timeout=TIMEOUT_S
        )
        assert any(a.status == health_pb2.HealthCheckResponse.SERVING for a in watch)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that a system gives to whoever asks for any."""
    found: list[int] = []
    for port in range(11_000 + os.getpid() % 4_000, 16_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no port is free")


# ---- launchd ----


def test_launchd_runs_what_it_says(socket_folder: Path) -> None:
    address = f"unix:{socket_folder}/a.sock"
    text = printed(
        "launchd", "--fake", "--address", address, "--set", "drain_seconds=1.5",
        "--set", "metrics_address=off", "--log-folder", str(socket_folder),
        "--label", "org.example.m",
        MLXRT_LOG_LEVEL="debug",
    )  # fmt: skip
    plist = plistlib.loads(text.encode())
    assert plist["Label"] == "org.example.m"
    assert plist["KeepAlive"] == {"SuccessfulExit": False} and plist["RunAtLoad"] is True
    assert plist["ExitTimeOut"] == 163  # 1.5 + 132 of a stall + closing
    assert plist["EnvironmentVariables"] == {"MLXRT_LOG_LEVEL": "debug"}
    assert plist["StandardOutPath"] != plist["StandardErrorPath"]
    assert Path(plist["StandardErrorPath"]).parent == socket_folder
    with running(plist["ProgramArguments"], plist["EnvironmentVariables"]):
        assert_serving(address)


def test_launchd_keeps_odd_characters() -> None:
    text = printed("launchd", "--model", "a<b>&--c", "--program", "/opt/my python -m mlxrt")
    words = plistlib.loads(text.encode())["ProgramArguments"]
    assert words == ["/opt/my", "python", "-m", "mlxrt", "serve", "--model", "a<b>&--c"]


# ---- systemd ----


def unit_of(text: str) -> dict[str, list[str]]:
    """The values of each key, over all sections."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def words_of(value: str) -> list[str]:
    """A command line as systemd reads it: quotes, then specifiers and variables."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(value)]


def test_systemd_runs_what_it_says_and_hears_when_it_is_ready(socket_folder: Path) -> None:
    address = f"unix:{socket_folder}/a.sock"
    config = socket_folder / "a setting$ %file.toml"
    config.write_text("drain_seconds = 2\nmetrics_address = 'off'\n")
    text = printed("systemd", "--fake", "--address", address, "--config", str(config))
    unit = unit_of(text)
    assert unit["Type"] == ["notify"] and unit["KillSignal"] == ["SIGTERM"]
    assert unit["TimeoutStopSec"] == ["163"] and unit["TimeoutStartSec"] == ["infinity"]
    assert unit["RestartPreventExitStatus"] == ["2 3 4 5"]
    assert unit["ReadWritePaths"] == [str(socket_folder)]
    assert unit["PrivateTmp"] == ["no" if socket_folder.is_relative_to("/tmp") else "yes"]
    for guard in ("NoNewPrivileges", "ProtectKernelTunables", "RestrictNamespaces"):
        assert unit[guard] == ["yes"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(socket_folder / "notify"))
        manager.settimeout(TIMEOUT_S)
        command = words_of(unit["ExecStart"][0])
        assert str(config) in command
        with running(command, {"NOTIFY_SOCKET": str(socket_folder / "notify")}):
            assert manager.recv(100) == b"READY=1"
            assert_serving(address)
        assert manager.recv(100) == b"STOPPING=1"


def test_a_manager_that_is_gone_stops_nothing(socket_folder: Path) -> None:
    address = f"unix:{socket_folder}/a.sock"
    command = [sys.executable, "-m", "mlxrt", "serve", "--fake", "--address", address]
    command += ["--set", "metrics_address=off", "--set", "drain_seconds=0"]
    with running(command, {"NOTIFY_SOCKET": str(socket_folder / "nobody")}):
        assert_serving(address)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_itself_finds_no_fault(tmp_path: Path) -> None:
    unit = tmp_path / "mlxrt.service"
    unit.write_text(
        printed(
            "systemd", "--fake", "--address", "unix:/run/mlxrt/m.sock",
            MLXRT_MODEL='a "quoted\\ 50% name',
        )
    )  # fmt: skip
    assert "RuntimeDirectory=mlxrt" in unit.read_text()
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    about = [line for line in result.stderr.splitlines() if "mlxrt.service" in line]
    assert (result.returncode, about) == (0, []), result.stderr


# ---- Kubernetes ----


def self_signed(folder: Path) -> None:
    """A certificate and its key, as tls.crt and tls.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mlxrt")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def manifest(text: str) -> dict[str, Any]:
    """The documents by their kinds."""
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pod_of(documents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's spec and its container."""
    spec = documents["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def test_kubernetes_has_what_a_cluster_asks_for() -> None:
    documents = manifest(printed("kubernetes", "--model", "org/model", "--gpus", "1"))
    spec, container = pod_of(documents)
    assert spec["terminationGracePeriodSeconds"] == 191
    assert spec["enableServiceLinks"] is False, "MLXRT_PORT and its like are no settings"
    assert spec["securityContext"]["runAsNonRoot"] is True
    probes = {
        kind: container[f"{kind}Probe"]["grpc"] for kind in ("startup", "readiness", "liveness")
    }
    assert probes == {
        "startup": {"port": 50062, "service": "readiness"},
        "readiness": {"port": 50062, "service": "readiness"},
        "liveness": {"port": 50062, "service": "liveness"},
    }
    assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert set(mounts.values()) == set(volumes)
    for folder, secret in (("/etc/mlxrt/tls", "mlxrt-tls"), ("/etc/mlxrt/tokens", "mlxrt-tokens")):
        (source,) = volumes[mounts[folder]]["projected"]["sources"]
        assert source == {"secret": {"name": secret}}
    service = documents["Service"]["spec"]
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert {p["name"]: p["port"] for p in service["ports"]} == {"grpc": 50061, "metrics": 9464}
    settings = tomllib.loads(documents["ConfigMap"]["data"]["mlxrt.toml"])
    assert settings["model"] == "org/model"
    assert set(settings) <= set(Settings.model_fields)


def test_kubernetes_beside_a_scheduler_in_one_pod() -> None:
    documents = manifest(printed("kubernetes", "--address", "127.0.0.1:50061", "--name", "beside"))
    settings = tomllib.loads(documents["ConfigMap"]["data"]["mlxrt.toml"])
    assert "tls" not in settings and "token_file" not in settings
    assert {p["name"] for p in documents["Service"]["spec"]["ports"]} == {"metrics"}
    assert documents["Deployment"]["metadata"]["name"] == "beside"


def test_kubernetes_runs_what_it_says(tmp_path: Path) -> None:
    self_signed(tmp_path)
    (tmp_path / "tokens").write_text("a-token-of-the-tests\n")
    config = tmp_path / "mine.toml"
    config.write_text(
        f'fake = true\ntoken_file = "{tmp_path}/tokens"\n[limits]\nmax_sessions = 3\n'
    )
    port, health_port = free_ports(2)
    text = printed(
        "kubernetes", "--config", str(config), "--set", f"address=0.0.0.0:{port}",
        "--set", f"health_address=0.0.0.0:{health_port}", "--set", "metrics_address=off",
        "--set", f"tls.certificate_file={tmp_path}/tls.crt",
        "--set", f"tls.key_file={tmp_path}/tls.key",
        MLXRT_DRAIN_SECONDS="0",
    )  # fmt: skip
    documents = manifest(text)
    _, container = pod_of(documents)
    settings = documents["ConfigMap"]["data"]["mlxrt.toml"]
    (tmp_path / "pod.toml").write_text(settings)
    loaded = load_settings(tmp_path / "pod.toml")
    assert (loaded.limits.max_sessions, loaded.drain_seconds, loaded.fake) == (3, 0, True)
    assert container["args"][0] == "--config"
    program, *words = container["command"]
    assert program == "mlxrt"
    command = [sys.executable, "-m", "mlxrt", *words, "--config", str(tmp_path / "pod.toml")]
    with running(command):
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["grpc"]
            assert_serving(f"127.0.0.1:{asked['port']}", asked["service"])


def test_settings_survive_their_file() -> None:
    values = {
        "text": 'a "b" \\ \t\n\x7f é \U0001f600', "number": 1.5, "count": 3, "yes": True,
        "list": [1, 2], "none": None, "table": {"inner": "x", "none": None},
    }  # fmt: skip
    again = tomllib.loads(toml_text(values))
    assert again == {
        **{k: v for k, v in values.items() if k not in ("none", "table")},
        "table": {"inner": "x"},
    }


# ---- Grafana and alerts ----


def exported() -> set[str]:
    """Every name that the server's page can have."""
    return {m.name + suffix for m in METRICS for suffix in SUFFIXES.get(m.kind, ("",))}


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    board = json.loads(printed("grafana"))
    graphs = [panel for panel in board["panels"] if panel["type"] == "timeseries"]
    queries = [target["expr"] for panel in graphs for target in panel["targets"]]
    named = {name for query in queries for name in NAMED.findall(query)}
    assert len(graphs) > 15 and named <= exported()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert_labels_exist(queries)
    assert not overlaps([panel["gridPos"] for panel in board["panels"]])
    variable = next(v for v in board["templating"]["list"] if v["name"] == "instance")
    assert set(NAMED.findall(variable["query"]["query"])) <= exported()


def overlaps(places: list[dict[str, int]]) -> bool:
    """Whether two panels share a cell of the grid, or one leaves it."""
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    return len(cells) != len(set(cells)) or max(x for x, _ in cells) >= 24


def test_the_alerts_watch_metrics_that_there_are() -> None:
    text = printed("prometheus-alerts", "--job", "serving", "--set", "stall_seconds=30")
    (group,) = yaml.safe_load(text)["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert len(rules) == len(group["rules"]) >= 10
    for rule in rules.values():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["description"]
        assert set(NAMED.findall(rule["expr"])) <= exported(), rule["alert"]
        assert 'job="serving"' in rule["expr"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
    assert_labels_exist([rule["expr"] for rule in rules.values()])
    assert rules["MlxrtEngineStalls"]["expr"].endswith("> 15")


def assert_labels_exist(queries: list[str]) -> None:
    """Each label that a selector asks for is one of that metric's, or Prometheus's own."""
    labels = {
        metric.name + suffix: {*metric.labels, "instance", "job"}
        for metric in METRICS
        for suffix in SUFFIXES.get(metric.kind, ("",))
    }
    selectors = [found for query in queries for found in re.findall(r"(\w+)\{([^}]*)\}", query)]
    assert selectors
    for metric, inside in selectors:
        if metric != "up":
            assert set(re.findall(r"(\w+)\s*[=!]~?=?", inside)) <= labels[metric], metric


def test_the_settings_that_files_speak_of_exist() -> None:
    words = {"stall_seconds", "drain_seconds", "memory_fraction", "num_blocks", "max_step_rows"}
    known = set(Settings.model_fields) | set(type(Settings().limits).model_fields)
    assert words <= known
    text = printed("prometheus-alerts") + printed("grafana") + printed("systemd")
    for word in words:
        assert word in text, f"{word} is checked here for nothing"


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["systemd", "--set", "blok_size=3"], "blok_size"),
        (["systemd", "--set", "token_file=tokens"], "token_file"),
        (["launchd", "--address", "unix:here.sock"], "address"),
        (["systemd", "--address", "unix:/run/m.sock"], "address"),
        (["systemd", "--user", "a b"], "--user"),
        (["systemd", "--program", "mlxrt"], "--program"),
        (["launchd", "--label", "a b"], "--label"),
        (["launchd", "--address", "0.0.0.0:1"], "tls.certificate_file"),
        (["kubernetes", "--set", "health_address=off"], "health_address"),
        (["kubernetes", "--set", "health_address=127.0.0.1:1"], "health_address"),
        (["kubernetes", "--address", "0.0.0.0:0"], "address"),
        (["kubernetes", "--name", "No"], "--name"),
        (["prometheus-alerts", "--set", "metrics_address=off"], "metrics_address"),
    ],
)
def test_what_could_not_run_is_refused_by_name(arguments: list[str], named: str) -> None:
    outcome = attempt(*arguments)
    assert (outcome.code, outcome.output) == (2, "")
    assert named in outcome.errors


def test_it_is_a_command_of_mlxrt() -> None:
    command = [sys.executable, "-m", "mlxrt", "deploy", "print", "grafana"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (result.returncode, result.stdout) == (0, printed("grafana"))
