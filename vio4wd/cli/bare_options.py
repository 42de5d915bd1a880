"""Options that may stand without a value, as getopt_long(3) reads them: ``--opt[=value]``, ``-o[value]``.

Click's own optional values would also take the next argument as the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click


class BareValueOption(click.Option):
    """An option whose value is optional; without one it has the value ``bare``."""

    def __init__(self, *args: Any, bare: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bare = bare

    @property
    def long_name(self) -> str:
        """The option's ``--name``."""
        return max(self.opts, key=len)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Show the value as optional."""
        return f"{', '.join(sorted(self.opts, key=len))}[={self.metavar}]", self.help or ""


class BareValueCommand(click.Command):
    """A command with options of the above kind."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the options that stand bare with their values, then parse as usual."""
        return super().parse_args(ctx, list(_Expansion(self.params, args)))


class _Expansion:
    """The arguments again, each bare option written as ``--name=bare``."""

    def __init__(self, params: Sequence[click.Parameter], args: Sequence[str]) -> None:
        self._options = {name: param for param in params if isinstance(param, click.Option) for name in param.opts}
        self._rest = iter(args)

    def __iter__(self) -> Iterator[str]:
        for arg in self._rest:
            if arg == "--":
                yield arg
                yield from self._rest
            elif arg.startswith("--"):
                yield from self._long(arg)
            elif len(arg) > 1 and arg.startswith("-"):
                yield from self._cluster(arg)
            else:
                yield arg

    def _long(self, arg: str) -> Iterator[str]:
        option = self._options.get(arg)
        if isinstance(option, BareValueOption):
            yield f"{arg}={option.bare}"
            return
        yield arg
        if option is not None and _takes_value(option):
            yield from self._value()

    def _cluster(self, arg: str) -> Iterator[str]:
        for at in range(1, len(arg)):
            option = self._options.get("-" + arg[at])
            if isinstance(option, BareValueOption):
                if at > 1:
                    yield arg[:at]
                yield f"{option.long_name}={arg[at + 1 :] or option.bare}"
                return
            if option is None or _takes_value(option):
                break
        yield arg
        if option is not None and _takes_value(option) and at == len(arg) - 1:
            yield from self._value()

    def _value(self) -> Iterator[str]:
        value = next(self._rest, None)
        if value is not None:
            yield value


def _takes_value(option: click.Option) -> bool:
    return not option.is_flag and not option.count
