"""What the small tools share: exit statuses and options."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vio4wd.cli.client import ClientKeys
from vio4wd.errors import ForwarderError
from vio4wd.portctl.endpoint import CORE_SCHED_EP, STATS_EP

EXIT_OK = 0
EXIT_FAILED = 1

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"]}


def run(command: click.Command) -> int:
    """Run a tool and answer its exit status: 0 done, 1 failed (said on stderr), 2 used wrongly; never anything else."""
    try:
        answer = command.main(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_FAILED
    except ForwarderError as error:
        click.echo(f"{Path(sys.argv[0]).name}: {error}", err=True)
        return EXIT_FAILED
    except UnicodeEncodeError as error:
        click.echo(f"{Path(sys.argv[0]).name}: {error.object!r} cannot be written as {error.encoding}", err=True)
        return EXIT_FAILED
    except OSError as error:
        return give_up(error)
    return answer if isinstance(answer, int) else EXIT_OK


def give_up(error: OSError) -> int:
    """Say on stderr that output cannot be written, and try no more of it; answers the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    click.echo(f"{Path(sys.argv[0]).name}: {error}", err=True)
    return EXIT_FAILED


def endpoint_options(*names: str) -> Callable[[F], F]:
    """Options ``--stats-ep`` and ``--sched-ep``: those named."""
    defaults = {"stats": STATS_EP, "sched": CORE_SCHED_EP}

    def decorate(function: F) -> F:
        for name in reversed(names):
            option = click.option(
                f"--{name}-ep",
                default=defaults[name],
                show_default=True,
                metavar="ENDPOINT",
                help=f"The {name} service.",
            )
            function = option(function)
        return function

    return decorate


def curve_options(function: F) -> F:
    """Options ``--curve-server-key`` and ``--curve-client-key``; read them with ``curve_keys``."""
    kind = click.Path(path_type=Path)
    function = click.option(
        "--curve-client-key",
        type=kind,
        metavar="FILE",
        help="Our own certificate with its secret key, for tcp:// endpoints.",
    )(function)
    return click.option(
        "--curve-server-key", type=kind, metavar="FILE", help="The daemon's public certificate, for tcp:// endpoints."
    )(function)


def curve_keys(server: Path | None, client: Path | None) -> ClientKeys | None:
    """The keys that ``curve_options`` gave, None for none. Raises click.UsageError where one is missing."""
    if server is None and client is None:
        return None
    if server is None or client is None:
        raise click.UsageError("--curve-server-key and --curve-client-key go together")
    return ClientKeys(server, client)
