"""All commands together, and how each of their failures becomes one line."""

from __future__ import annotations

import io
import platform
import sys
import traceback
from collections.abc import Sequence

import click
import trio

from .._version import __version__
from .baton import baton
from .certificate import cert
from .connect import connect
from .demo import demo
from .errors import Interrupted, describe
from .serve import serve
from .text import one_line

__all__ = ["run", "trio_wt"]

_USAGE = 2
_INTERRUPTED = 130


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
    invoke_without_command=True,
)
@click.version_option(
    __version__,
    prog_name="trio-wt",
    message=f"%(prog)s %(version)s (Python {platform.python_version()}, Trio {trio.__version__})",
)
@click.option(
    "--traceback", is_flag=True, expose_value=False, help="Show where an error came from."
)
@click.pass_context
def trio_wt(context: click.Context) -> None:
    """WebSocket and WebTransport on Trio: clients, an echo server, development certificates, and a demonstration."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(_USAGE)


for _command in (connect, serve, baton, cert, demo):
    trio_wt.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; `trio_wt.cli.main` tells which there are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every character
    try:
        code = trio_wt.main(list(arguments), prog_name="trio-wt", standalone_mode=False)
    except click.UsageError as exc:
        where = exc.ctx.command_path if exc.ctx is not None else "trio-wt"
        return _fail(f"{exc.format_message()} (see {where} --help)", _USAGE)
    except Interrupted as exc:
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except ModuleNotFoundError:
        raise  # trio_wt.cli knows which extra to install
    except Exception as exc:
        if "--traceback" in arguments:
            traceback.print_exception(exc)
        return _fail(
            exc.format_message() if isinstance(exc, click.ClickException) else describe(exc)
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = 1) -> int:
    print(f"trio-wt: {one_line(message)}", file=sys.stderr)
    return code
