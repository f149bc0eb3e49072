"""A Kubernetes manifest: settings, one server, and its address."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlxrt.addresses import OFF, is_local
from mlxrt.config import ConfigError, Settings
from mlxrt.deploy.service import Service, check_absolute, port_of
from mlxrt.deploy.toml_text import settings_text
from mlxrt.server.health import LIVENESS, READINESS

CONFIG_FILE = "/etc/mlxrt/settings/mlxrt.toml"
CACHE_FOLDER = "/var/cache/huggingface"
LOAD_MINUTES_MAX = 60
"""How long a model may take to load before its pod is started anew."""
_PROBE_S = 10
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")

_PRESETS: dict[str, Any] = {
    "address": "0.0.0.0:50061",
    "health_address": "0.0.0.0:50062",
    "metrics_address": "0.0.0.0:9464",
    "metrics_beyond_loopback": True,
}
_TLS_PRESETS: dict[str, Any] = {
    "tls": {
        "certificate_file": "/etc/mlxrt/tls/tls.crt",
        "key_file": "/etc/mlxrt/tls/tls.key",
    },
    "token_file": "/etc/mlxrt/tokens/tokens",
}


@dataclass(frozen=True, slots=True)
class Pod:
    """What the cluster is asked for.

    Attributes:
        name: of the Deployment and the Service; secrets are NAME-tls and NAME-tokens.
        image: with the command `mlxrt`.
        memory: as Kubernetes writes quantities.
        gpu_count: of nvidia.com/gpu; 0 for none.
    """

    name: str
    image: str
    memory: str
    gpu_count: int


def presets_for(address: str | None) -> Mapping[str, Any]:
    """Settings that take the place of defaults which make no sense in a pod.

    Args:
        address: the one that was asked for; None for none.
    """
    if address is not None and is_local(address):
        return _PRESETS
    return {**_PRESETS, **_TLS_PRESETS}


def kubernetes(service: Service, pod: Pod) -> str:
    """The manifest.

    Raises:
        ConfigError: the probes could not reach the server, or a path is relative.
    """
    if not _NAME.fullmatch(pod.name):
        raise ConfigError(f"--name: {pod.name!r} is no DNS label")
    check_absolute(service)
    _check_reachable(service.settings)
    volumes, mounts = _secrets(service, pod)
    return _TEMPLATE.format(
        name=pod.name,
        creates="".join(f"#   {line}\n" for line in _creates(service, pod)),
        config=_indented(settings_text(service.settings), 4),
        ports=_ports(service.settings, "containerPort", 12),
        service=_service(service.settings, pod),
        annotations=_annotations(service.settings.metrics_address),
        stop_seconds=service.stop_seconds,
        image=_quoted(pod.image),
        config_file=CONFIG_FILE,
        config_folder=PurePosixPath(CONFIG_FILE).parent,
        cache=CACHE_FOLDER,
        health_port=port_of(service.settings.health_address),
        liveness=LIVENESS,
        readiness=READINESS,
        probe_s=_PROBE_S,
        starts=LOAD_MINUTES_MAX * 60 // _PROBE_S,
        memory=_quoted(pod.memory),
        gpus=f"\n              nvidia.com/gpu: {pod.gpu_count}" if pod.gpu_count else "",
        volumes=volumes,
        mounts=mounts,
    )


def _check_reachable(settings: Settings) -> None:
    health = settings.health_address
    if health == OFF or is_local(health) or port_of(health) == 0:
        raise ConfigError(
            f"health_address: {health!r} is not for Kubernetes, whose probes come from outside the "
            "pod and speak neither TLS nor tokens: set it to 0.0.0.0:PORT"
        )
    for name, address in (
        ("address", settings.address), ("metrics_address", settings.metrics_address),
    ):  # fmt: skip
        if port_of(address) == 0:
            raise ConfigError(f"{name}: {address!r} has no port that others could know")


def _secrets(service: Service, pod: Pod) -> tuple[str, str]:
    """Volumes and mounts for the files that settings name: a folder each, of one or two secrets."""
    by_folder: dict[Path, dict[str, None]] = {}
    for setting, path in service.files():
        secret = f"{pod.name}-tokens" if setting == "token_file" else f"{pod.name}-tls"
        by_folder.setdefault(path.parent, {})[secret] = None
    volumes, mounts = "", ""
    for index, (folder, secrets) in enumerate(by_folder.items()):
        sources = "".join(
            f"              - secret: {{name: {_quoted(secret)}}}\n" for secret in secrets
        )
        volumes += _VOLUME.format(index=index, sources=sources)
        mounts += _MOUNT.format(index=index, folder=_quoted(str(folder)))
    return volumes, mounts


def _creates(service: Service, pod: Pod) -> list[str]:
    """The commands that make the secrets, their keys named as the settings name the files."""
    files = dict(service.files())
    lines = []
    tokens = files.pop("token_file", None)
    for suffix, paths in (("tls", list(files.values())), ("tokens", [tokens] if tokens else [])):
        if paths:
            sources = " ".join(f"--from-file={path.name}=FILE" for path in paths)
            lines.append(f"kubectl create secret generic {pod.name}-{suffix} {sources}")
    return lines


def _ports(settings: Settings, key: str, indent: int) -> str:
    """A list of the ports; the health port is the kubelet's alone and in no Service."""
    named = {"grpc": settings.address, "metrics": settings.metrics_address}
    if key == "containerPort":
        named["health"] = settings.health_address
    lines = ""
    for name, address in named.items():
        port = port_of(address)
        if port is not None and not is_local(address):
            lines += f"{' ' * indent}- {{name: {name}, {key}: {port}}}\n"
    return lines


def _annotations(metrics_address: str) -> str:
    if metrics_address == OFF or is_local(metrics_address):
        return ""
    return _SCRAPE.format(port=port_of(metrics_address))


def _service(settings: Settings, pod: Pod) -> str:
    ports = _ports(settings, "port", 4)
    if not ports:
        return ""
    return _SERVICE.format(name=pod.name, ports=ports)


def _indented(text: str, spaces: int) -> str:
    return "".join(" " * spaces + line if line.strip() else line for line in text.splitlines(True))


def _quoted(text: str) -> str:
    """A string of YAML, whatever is in it: JSON's are YAML's."""
    return json.dumps(text)


_VOLUME = """\
        - name: secrets-{index}
          projected:
            defaultMode: 0400
            sources:
{sources}"""

_MOUNT = """\
            - name: secrets-{index}
              mountPath: {folder}
              readOnly: true
"""

_SCRAPE = """\
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "{port}"
"""

_SERVICE = """\
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  labels: {{app.kubernetes.io/name: mlxrt, app.kubernetes.io/instance: {name}}}
spec:
  selector: {{app.kubernetes.io/name: mlxrt, app.kubernetes.io/instance: {name}}}
  ports:
{ports}"""

_TEMPLATE = """\
# mlxrt on Kubernetes. Written by `mlxrt deploy print kubernetes`.
{creates}\
#   mlxrt deploy print kubernetes | kubectl apply -f -
# Sessions live in one server's memory: more of them is more Deployments, not more replicas.
# No container has an Apple GPU; with --gpus one has NVIDIA's.
apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}
  labels: {{app.kubernetes.io/name: mlxrt, app.kubernetes.io/instance: {name}}}
data:
  mlxrt.toml: |
{config}\
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
  labels: {{app.kubernetes.io/name: mlxrt, app.kubernetes.io/instance: {name}}}
spec:
  replicas: 1
  strategy: {{type: Recreate}}
  selector:
    matchLabels: {{app.kubernetes.io/name: mlxrt, app.kubernetes.io/instance: {name}}}
  template:
    metadata:
      labels: {{app.kubernetes.io/name: mlxrt, app.kubernetes.io/instance: {name}}}
{annotations}\
    spec:
      # SIGTERM drains: drain_seconds, then steps under way until they count as stalled.
      terminationGracePeriodSeconds: {stop_seconds}
      automountServiceAccountToken: false
      # The variables of service links begin with MLXRT_ and are no settings.
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        seccompProfile: {{type: RuntimeDefault}}
      containers:
        - name: mlxrt
          image: {image}
          command: [mlxrt, serve]
          args: [--config, {config_file}]
          env:
            - {{name: HF_HOME, value: {cache}}}
          ports:
{ports}\
          startupProbe:
            grpc: {{port: {health_port}, service: {readiness}}}
            periodSeconds: {probe_s}
            failureThreshold: {starts}
          readinessProbe:
            grpc: {{port: {health_port}, service: {readiness}}}
            periodSeconds: {probe_s}
            timeoutSeconds: 5
          livenessProbe:
            grpc: {{port: {health_port}, service: {liveness}}}
            periodSeconds: {probe_s}
            timeoutSeconds: 5
            failureThreshold: 6
          resources:
            requests: {{memory: {memory}}}
            limits:
              memory: {memory}{gpus}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
          volumeMounts:
            - {{name: settings, mountPath: {config_folder}, readOnly: true}}
            - {{name: cache, mountPath: {cache}}}
            - {{name: tmp, mountPath: /tmp}}
{mounts}\
      volumes:
        - name: settings
          configMap: {{name: {name}}}
        # A PersistentVolumeClaim here keeps the model over restarts.
        - name: cache
          emptyDir: {{}}
        - name: tmp
          emptyDir: {{}}
{volumes}{service}"""
