"""`mlxrt deploy print`: each command prints one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxrt.cli_options import ConfigFile, Model, SetOption, explicit_values, settings_of
from mlxrt.config import load_settings_over, read_toml
from mlxrt.env_variables import ENV_PREFIX

if TYPE_CHECKING:
    from mlxrt.deploy.service import Service

deploy = typer.Typer(no_args_is_help=True, help="Files that run and watch a server.")
printing = typer.Typer(
    no_args_is_help=True,
    help="Prints a file to standard output. Options of `serve` and MLXRT_ variables go into it.",
)
deploy.add_typer(printing, name="print")

Fake = Annotated[bool, typer.Option("--fake", help="Serve the fake model; needs no MLX.")]
Address = Annotated[str | None, typer.Option(help="unix:PATH or HOST:PORT.")]
Program = Annotated[
    str | None,
    typer.Option(help="The program, an absolute path, and its first arguments. Default: this one."),
]


@printing.command("launchd")
def print_launchd(
    model: Model = None,
    fake: Fake = False,
    address: Address = None,
    config: ConfigFile = None,
    set_: SetOption = None,
    program: Program = None,
    label: Annotated[str, typer.Option(help="Name, in reverse-DNS form.")] = "dev.mlxrt.server",
    log_folder: Annotated[
        Path | None, typer.Option(help="Default: ~/Library/Logs/mlxrt, of who prints.")
    ] = None,
) -> None:
    """Prints a launchd agent for a Mac: its property list."""
    from mlxrt.deploy.launchd import launchd

    service = _service(config, set_, program, model=model, fake=fake or None, address=address)
    folder = log_folder or Path.home() / "Library" / "Logs" / "mlxrt"
    typer.echo(launchd(service, label, folder.absolute()), nl=False)


@printing.command("systemd")
def print_systemd(
    model: Model = None,
    fake: Fake = False,
    address: Address = None,
    config: ConfigFile = None,
    set_: SetOption = None,
    program: Program = None,
    user: Annotated[str, typer.Option(help="Whom the server runs as.")] = "mlxrt",
) -> None:
    """Prints a systemd unit for Linux."""
    from mlxrt.deploy.systemd import systemd

    service = _service(config, set_, program, model=model, fake=fake or None, address=address)
    typer.echo(systemd(service, user), nl=False)


@printing.command("kubernetes")
def print_kubernetes(
    model: Model = None,
    fake: Fake = False,
    address: Address = None,
    config: ConfigFile = None,
    set_: SetOption = None,
    name: Annotated[str, typer.Option(help="Of the Deployment and what belongs to it.")] = "mlxrt",
    image: Annotated[str, typer.Option(help="An image of yours with the command mlxrt.")] = "mlxrt",
    memory: Annotated[str, typer.Option(help="For the pod, as in Kubernetes.")] = "16Gi",
    gpus: Annotated[int, typer.Option(min=0, help="Of nvidia.com/gpu.")] = 0,
) -> None:
    """Prints a Kubernetes manifest: settings, Deployment, Service."""
    from mlxrt.deploy.kubernetes import Pod, kubernetes, presets_for
    from mlxrt.deploy.service import Service

    values = explicit_values(set_, model=model, fake=fake or None, address=address)
    settings = load_settings_over(presets_for(_asked_address(config, values)), config, **values)
    pod = Pod(name, image, memory, gpus)
    typer.echo(kubernetes(Service(settings, [], {}), pod), nl=False)


@printing.command("grafana")
def print_grafana() -> None:
    """Prints a Grafana dashboard over the server's metrics: JSON to import."""
    from mlxrt.deploy.grafana import dashboard

    typer.echo(dashboard(), nl=False)


@printing.command("prometheus-alerts")
def print_alerts(
    config: ConfigFile = None,
    set_: SetOption = None,
    job: Annotated[str, typer.Option(help="Prometheus's job that scrapes the servers.")] = "mlxrt",
) -> None:
    """Prints Prometheus's alerting rules over the server's metrics."""
    from mlxrt.deploy.alerts import alerts

    typer.echo(alerts(settings_of(config, set_), job), nl=False)


def _service(
    config: Path | None, set_: list[str] | None, program: str | None, **options: Any
) -> Service:
    """The service that `serve` with the same options is.

    Raises:
        ConfigError: the settings are wrong, or the program is.
    """
    from mlxrt.deploy.service import Service, program_of, setting_variables

    settings = load_settings_over({}, config, **explicit_values(set_, **options))
    words = [*program_of(program), "serve"]
    if config is not None:
        words += ["--config", str(config.absolute())]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", _placed(name, value)]
    for entry in set_ or ():
        words += ["--set", entry]
    return Service(settings, words, setting_variables())


def _placed(name: str, value: str) -> str:
    """A model's folder by its whole path: the service starts in another folder."""
    path = Path(value)
    return str(path.absolute()) if name == "model" and path.is_dir() else value


def _asked_address(config: Path | None, explicit: Mapping[str, Any]) -> str | None:
    """The address that one of the sources names; None where none does."""
    sources = [explicit, {"address": os.environ.get(f"{ENV_PREFIX}ADDRESS")}]
    if config is not None:
        sources.append(read_toml(config))
    asked = (source.get("address") for source in sources)
    return next((each for each in asked if isinstance(each, str)), None)
