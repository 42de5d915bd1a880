"""Command line of the daemon: the options of the key table and a few of its own become an Invocation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vio4wd import __version__
from vio4wd.cli.bare_options import BareValueCommand, BareValueOption
from vio4wd.config import DEFAULT_PATH, Config, dump, load
from vio4wd.config.keys import KEYS, KeySpec
from vio4wd.config.kinds import FLAG, NOT_BLANK, OPTIONAL_PATH, PATH
from vio4wd.errors import ConfigError, ForwarderError

NAME = "virtio-forwarder"
LOG_SYSLOG = "log_syslog"

Overrides = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Invocation:
    """What a command line asks of the daemon.

    ``nodaemon``: stay in the foreground; ``log_syslog``: and log to syslog nevertheless. ``config_required`` is false
    for the default file, which may be missing. ``overrides`` are the keys that the command line gave.
    """

    config: Config
    nodaemon: bool
    log_syslog: bool
    config_path: Path
    config_required: bool
    overrides: Overrides

    def reload(self) -> Config:
        """Read the file again, with the same command line on top.

        Raises:
            ConfigError: as ``vio4wd.config.load``.
        """
        return _load(self.config_path, self.config_required, self.overrides)


def _load(path: Path, required: bool, overrides: Overrides) -> Config:
    return load(path if required or path.exists() else None, overrides)


def dpdk_version() -> str:
    """The version of the DPDK libraries here, or why there is none."""
    from vio4wd.dpdk_ffi import loader  # DPDK is loaded for this option only

    try:
        return str(loader.load().version)
    except ForwarderError as error:
        return f"DPDK: {error}"


def make_command(run: Callable[[Invocation], int], version: Callable[[], str] = dpdk_version) -> click.Command:
    """The daemon's command: reads options and configuration and answers with the exit status of ``run``.

    Usage errors exit 2. A configuration that cannot be used exits 1, with one line for each problem on stderr.
    """

    def print_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            click.echo(f"{NAME} {__version__}\n{version()}")
            context.exit(0)

    @click.pass_context
    def command(context: click.Context, /, **values: Any) -> None:
        try:
            invocation = _invocation(values)
        except ConfigError as error:
            for problem in str(error).splitlines():
                click.echo(f"{NAME}: {problem}", err=True)
            context.exit(1)
        if values["check_config"]:
            _print_config(invocation.config)
            context.exit(0)
        context.exit(run(invocation))

    show_version = click.Option(
        ["-v", "--version"], is_flag=True, expose_value=False, is_eager=True, callback=print_version,
        help="Print the versions of the daemon and of DPDK.",
    )  # fmt: skip
    return BareValueCommand(
        NAME,
        callback=command,
        params=[*_key_options(), *_own_options(), show_version],
        help="Relay packets between SR-IOV virtual functions and virtual machines. "
        f"The command line wins over the file {DEFAULT_PATH}.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _invocation(values: Mapping[str, Any]) -> Invocation:
    path: Path = (values["config"] or DEFAULT_PATH).absolute()  # for a reload in the background, whose directory is /
    required = values["config"] is not None
    overrides = dict(_overrides(values))
    mode = values["nodaemon"]
    return Invocation(
        config=_load(path, required, overrides),
        nodaemon=mode is not None,
        log_syslog=mode == LOG_SYSLOG,
        config_path=path,
        config_required=required,
        overrides=overrides,
    )


def _print_config(config: Config) -> None:
    for warning in config.warnings:
        click.echo(f"{NAME}: warning: {warning}", err=True)
    click.echo(dump(config), nl=False)


def _key_options() -> Iterator[click.Option]:
    for spec in KEYS.values():
        if spec.option is None:
            continue
        names = [spec.field, *filter(None, (spec.option.short, spec.option.long))]
        description = f"{spec.explanation} [{spec.key}]"
        if spec.kind in (FLAG, NOT_BLANK):
            yield click.Option(names, is_flag=True, help=description)
        elif spec.option.bare is not None:
            yield BareValueOption(names, bare=spec.option.bare, metavar=spec.option.metavar, help=description)
        else:
            yield click.Option(names, metavar=spec.option.metavar, multiple=spec.option.repeat, help=description)


def _own_options() -> Iterator[click.Option]:
    yield BareValueOption(
        ["nodaemon", "-n", "--nodaemon"], bare="", metavar=LOG_SYSLOG, callback=_check_mode,
        help="Stay in the foreground and log to stderr, or to syslog.",
    )  # fmt: skip
    yield click.Option(
        ["--config"], type=click.Path(path_type=Path), metavar="FILE",
        help=f"Configuration file.  [default: {DEFAULT_PATH}]",
    )  # fmt: skip
    yield click.Option(
        ["--check-config"], is_flag=True,
        help="Print the effective configuration as lines of a file and exit: 0, or 1 if it cannot be used.",
    )  # fmt: skip


def _check_mode(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value not in (None, "", LOG_SYSLOG):
        raise click.BadParameter(f"{value!r}: the only value is {LOG_SYSLOG}")
    return value


def _overrides(values: Mapping[str, Any]) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    for spec in KEYS.values():
        value = values.get(spec.field)
        if value is True:
            yield spec.key, "true"
        elif isinstance(value, str):
            yield spec.key, _absolute(spec, value)
        elif value:
            yield spec.key, tuple(value)


def _absolute(spec: KeySpec, value: str) -> str:
    """Paths on the command line may be relative to the directory that it was typed in."""
    is_path = spec.kind in (PATH, OPTIONAL_PATH)
    return str(Path(value).absolute()) if is_path and value else value
