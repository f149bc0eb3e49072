"""The one settings tree of the server: explicit values, then `MLXRT_` environment variables, then
a TOML file, then defaults.

Nested settings have a double underscore in the environment (`MLXRT_LIMITS__MAX_STEP_ROWS`) and a
table in TOML (`[limits]`). A key that nobody knows is an error in each of the sources.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mlxrt.addresses import (
    OFF,
    checked_address,
    checked_collector,
    checked_side_address,
    is_local,
)
from mlxrt.core.model import Limits
from mlxrt.env_variables import ENV_PREFIX, check_environment

FAKE_MODEL_LENGTH_MAX = 1 << 15
"""Positions of the fake model's longest sequence; its sums are exact up to there."""


class ConfigError(ValueError):
    """The configuration can't be used; the message says which key and why. Exit code 2."""


def _ascending(buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The buckets; raises ValueError unless they are positive and ascend."""
    if any(b < 1 for b in buckets) or any(a >= b for a, b in pairwise(buckets)):
        raise ValueError("row buckets are positive and ascend")
    return buckets


class LimitSettings(BaseModel):
    """The declared limits; each is enforced at its value. `mlxrt.v1.Limits` defines what each
    counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_inflight_steps: int = Field(
        default=2, ge=2, le=64, description="Steps of one session in flight. 2 to 64."
    )
    max_step_rows: int = Field(
        default=2048, ge=1, le=1 << 20, description="Rows of one step. 1 to 1048576."
    )
    max_step_sequences: int = Field(
        default=256, ge=1, le=1 << 16, description="Sequences of one step. 1 to 65536."
    )
    max_step_copies: int = Field(
        default=1024, ge=0, le=1 << 20, description="Block copies of one step. 0 to 1048576."
    )
    max_logits_rows: int = Field(
        default=16, ge=0, le=4096, description="Rows of one step that answer logits. 0 to 4096."
    )
    max_step_drafts: int = Field(
        default=256, ge=0, le=1 << 16, description="Draft tokens of one step. 0 to 65536."
    )
    max_mask_rows: int = Field(
        default=512, ge=0, le=1 << 17, description="Rows of the masks of one step. 0 to 131072."
    )
    max_prompt_logprobs_rows: int = Field(
        default=2048, ge=0, le=1 << 20,
        description="Rows of one step that answer prompt logprobs. 0 to 1048576.",
    )  # fmt: skip
    max_sequences: int = Field(
        default=1024, ge=1, le=1 << 20, description="Sequences of one session. 1 to 1048576."
    )
    max_model_length: int = Field(
        default=4096, ge=1, le=1 << 24,
        description="Positions of one sequence, 1 to 16777216; the model's own length wins where "
        "it is shorter.",
    )  # fmt: skip
    max_sessions: int = Field(default=16, ge=1, le=4096, description="Open sessions. 1 to 4096.")
    max_message_bytes: int = Field(
        default=4 << 20, ge=1 << 16, le=(1 << 31) - 1,
        description="Bytes of one message, both directions. 65536 to 2147483647. Larger ones carry "
        "more masks and logits in a step, and cost who waits beside them more.",
    )  # fmt: skip
    max_logit_bias: int = Field(
        default=1024, ge=0, le=1 << 20, description="Logit biases of one sequence. 0 to 1048576."
    )
    max_top_logprobs: int = Field(
        default=64, ge=0, le=4096, description="Alternatives per logprob. 0 to 4096."
    )
    min_lease_ttl_ms: int = Field(
        default=1_000, ge=1, le=86_400_000, description="Shortest lease, ms. 1 to 86400000."
    )
    max_lease_ttl_ms: int = Field(
        default=600_000, ge=1, le=86_400_000, description="Longest lease, ms. 1 to 86400000."
    )
    default_lease_ttl_ms: int = Field(
        default=30_000, ge=1, le=86_400_000,
        description="Lease of a session that names none, ms; between the shortest and the longest.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _leases_ordered(self) -> LimitSettings:
        if not self.min_lease_ttl_ms <= self.default_lease_ttl_ms <= self.max_lease_ttl_ms:
            raise ValueError(
                "leases need min_lease_ttl_ms <= default_lease_ttl_ms <= max_lease_ttl_ms"
            )
        return self

    def to_limits(self) -> Limits:
        """The same numbers in the core's form."""
        return Limits(**{f.name: getattr(self, f.name) for f in dataclass_fields(Limits)})


class FakeSettings(BaseModel):
    """The fake model of `fake = true`; mlxrt.testing.fake_engine says what it computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary_size: int = Field(default=4096, ge=2, le=1 << 18, description="Tokens. 2 to 262144.")
    num_blocks: int = Field(
        default=4096,
        ge=2,
        le=1 << 22,
        description="Blocks of each group, block 0 included. 2 to 4194304.",
    )
    windows: tuple[int, ...] = Field(
        default=(0,), min_length=1, max_length=8,
        description="One group per entry: positions that a row sees in it, 0 for all.",
    )  # fmt: skip
    step_ms: float = Field(
        default=0.0,
        ge=0,
        le=60_000,
        description="Time that each step pretends to take, ms. 0 to 60000.",
    )


class TlsSettings(BaseModel):
    """Certificates, PEM. Files that change are read again at the next handshake."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate_file: Path | None = Field(
        default=None, description="The server's certificate, then its chain. Default: no TLS."
    )
    key_file: Path | None = Field(
        default=None, description="Private key of the certificate, without a passphrase."
    )
    client_ca_file: Path | None = Field(
        default=None,
        description="Authorities whose clients are let in; every client then needs a certificate.",
    )

    @model_validator(mode="after")
    def _whole(self) -> TlsSettings:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("tls.certificate_file and tls.key_file are needed together")
        if self.client_ca_file is not None and not self.enabled:
            raise ValueError(
                "tls.client_ca_file needs the server's own tls.certificate_file and tls.key_file"
            )
        return self

    @property
    def enabled(self) -> bool:
        """Whether the server speaks TLS."""
        return self.certificate_file is not None


class TracingSettings(BaseModel):
    """OpenTelemetry, of the extra `otel`. The exporter reads OTEL_EXPORTER_OTLP_* besides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: Annotated[str, AfterValidator(checked_collector)] | None = Field(
        default=None,
        description="Collector that takes OTLP over gRPC, http://HOST:PORT, or https:// for TLS. "
        "Default: no tracing.",
    )
    service_name: str = Field(
        default="mlxrt", min_length=1, description="Name of this service in its spans."
    )
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, allow_inf_nan=False,
        description="Share of the steps that are traced where the caller has no trace of its own; "
        "one that has decides itself. 0 to 1.",
    )  # fmt: skip


class Settings(BaseSettings):
    """Everything that can be set; frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True,
        protected_namespaces=(),
    )  # fmt: skip

    model: str = Field(
        "bundled", min_length=1,
        description="Model: a local folder, a Hugging Face hub name, or 'bundled' for the small "
        "one in the package.",
    )  # fmt: skip
    fake: bool = Field(
        False, description="Serve the fake model, which needs no MLX. Default: false."
    )
    fake_model: FakeSettings = Field(
        default_factory=FakeSettings, description="What the fake model is like."
    )
    address: Annotated[str, AfterValidator(checked_address)] = Field(
        "127.0.0.1:50061",
        description="Where to listen: unix:PATH or HOST:PORT. Port 0: any free one. A host beyond "
        "loopback needs TLS, and a client CA or a token file.",
    )  # fmt: skip
    tls: TlsSettings = Field(default_factory=TlsSettings, description="Certificates.")
    token_file: Path | None = Field(
        None,
        description="File with one or two tokens, a line each, of at least 16 characters; every "
        "call then needs one of them. Read again when it changes. Default: no token is asked for.",
    )
    health_address: Annotated[str, AfterValidator(checked_side_address)] = Field(
        OFF,
        description="A second place, HOST:PORT, that answers grpc.health.v1 alone, without TLS and "
        "token: for probes that speak neither. Default: off.",
    )
    metrics_address: Annotated[str, AfterValidator(checked_side_address)] = Field(
        "127.0.0.1:9464",
        description="Where Prometheus scrapes, HOST:PORT over HTTP, or off. A port that is taken: "
        "refused where this is set, else the server goes on without metrics and says so.",
    )
    metrics_beyond_loopback: bool = Field(
        False,
        description="Let metrics_address be one that other machines reach: it has neither TLS nor "
        "tokens, and whoever reaches it reads the metrics. Default: false.",
    )
    attention: Literal["auto", "native", "gather"] = Field(
        "auto",
        description="How attention is computed. auto: native where the device has a kernel for it.",
    )  # fmt: skip
    compiled: Literal["auto", "on", "off"] = Field(
        "auto", description="Replay decode steps of a known shape: auto, on GPUs, on or off."
    )
    fused: Literal["auto", "on", "off"] = Field(
        "auto", description="Merge projections and operations of layers: auto (if it can), on, off."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Type of activations, keys and values. auto: float32 on a CPU, else the "
        "checkpoint's.",
    )  # fmt: skip
    blas: Literal["auto", "openblas", "reference"] = Field(
        "auto",
        description="BLAS for float32 on a Linux CPU. auto: OpenBLAS where it is installed, else "
        "MLX's own.",
    )  # fmt: skip
    block_size: int = Field(16, ge=1, le=256, description="Positions in a block. 1 to 256.")
    num_blocks: int | None = Field(
        None, ge=2, le=1 << 31,
        description="Blocks of each group's pool, block 0 included. At least 2. Default: as many "
        "as the memory plan allows.",
    )  # fmt: skip
    window_num_blocks: int | None = Field(
        None, ge=2, le=1 << 31,
        description="Blocks of the pool of each group with a sliding window: fewer, for clients "
        "that give back what left it. At least 2. Default: as many as the other groups have.",
    )  # fmt: skip
    memory_fraction: float = Field(
        0.8, gt=0, le=1,
        description="Share of the device's memory that weights, pool and steps may use. Above 0, "
        "to 1.",
    )  # fmt: skip
    row_buckets: Annotated[tuple[int, ...], AfterValidator(_ascending)] | None = Field(
        None, max_length=64,
        description="Row counts that a forward is padded up to, ascending; a larger step is not "
        "padded, empty pads none. Default: the device's (none on a CPU).",
    )  # fmt: skip
    accept_mlx_lm_semantics: bool = Field(
        False,
        description="Load a checkpoint even where mlx-lm ignores a field of its configuration, and "
        "compute as mlx-lm does. Default: false, such a checkpoint is refused by name.",
    )
    limits: LimitSettings = Field(default_factory=LimitSettings, description="The declared limits.")
    drain_seconds: float = Field(
        30.0, ge=0, le=3600, description="Longest drain after SIGTERM, seconds. 0 to 3600.",
    )  # fmt: skip
    stall_seconds: float = Field(
        120.0, ge=0.1, le=86_400,
        description="Age of a running step at which health says NOT_SERVING until it ends, "
        "seconds. 0.1 to 86400.",
    )  # fmt: skip
    reflection: bool = Field(
        True, description="Serve grpc.reflection, to whoever may call. Default: true."
    )
    tracing: TracingSettings = Field(
        default_factory=TracingSettings, description="One span a step."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of the log. auto: console on a terminal, else JSON lines.",
    )  # fmt: skip
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level logged."
    )

    @model_validator(mode="after")
    def _bind_is_safe(self) -> Settings:
        """Refuses what others could reach without proving who they are."""
        metrics = self.metrics_address
        if metrics != OFF and not is_local(metrics) and not self.metrics_beyond_loopback:
            raise ValueError(
                f"metrics_address: {metrics!r} can be reached from other machines, without TLS or "
                "token: use a loopback address or off, or set metrics_beyond_loopback"
            )
        if self.address.startswith("unix:") and self.tls.enabled:
            raise ValueError("a unix socket is its owner's alone and takes no TLS: leave tls unset")
        if is_local(self.address):
            return self
        missing = [] if self.tls.enabled else ["tls.certificate_file and tls.key_file"]
        if self.tls.client_ca_file is None and self.token_file is None:
            missing.append("tls.client_ca_file or token_file")
        if missing:
            raise ValueError(
                f"{self.address!r} can be reached from other machines, which needs TLS and callers "
                f"that prove who they are: set {', and '.join(missing)}; or use unix:PATH or a "
                "loopback address (127.0.0.0/8, [::1])"
            )
        return self

    @model_validator(mode="after")
    def _fake_fits(self) -> Settings:
        if self.fake and self.limits.max_model_length > FAKE_MODEL_LENGTH_MAX:
            raise ValueError(
                f"the fake model has at most {FAKE_MODEL_LENGTH_MAX} positions: lower "
                "limits.max_model_length"
            )
        return self


def load_settings(config_file: Path | None = None, /, **explicit: Any) -> Settings:
    """Reads the settings from their sources; values in `explicit` win.

    Raises:
        ConfigError: a value is out of range, a key is unknown, or the file can't be read.
    """
    return load_settings_over({}, config_file, **explicit)


def load_settings_over(
    presets: Mapping[str, Any], config_file: Path | None = None, /, **explicit: Any
) -> Settings:
    """As `load_settings`, with `presets` in place of some defaults."""
    from_file = read_toml(config_file) if config_file is not None else {}

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                init_settings,
                env_settings,
                InitSettingsSource(settings_cls, init_kwargs=from_file),
                InitSettingsSource(settings_cls, init_kwargs=dict(presets)),
            )

    try:
        check_environment(os.environ, Settings)
        return Sourced(**explicit)
    except ValidationError as error:
        lines = (
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError("; ".join(lines)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises ConfigError where it can't be read."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
