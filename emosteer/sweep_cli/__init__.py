"""The command `emosteer-sweep`: what became of sweeps, their SLURM jobs, their results again, and the store's upkeep.

One command a file; its function's docstring is its help. A new one is a file like these, and a line below.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import emosteer
from emosteer.errors import EmosteerError
from emosteer.sweep_cli import workers
from emosteer.sweep_cli.cancel import cancel
from emosteer.sweep_cli.chat import chat
from emosteer.sweep_cli.compare import compare
from emosteer.sweep_cli.dashboard import dashboard
from emosteer.sweep_cli.export import export
from emosteer.sweep_cli.figures import figures
from emosteer.sweep_cli.gc import gc
from emosteer.sweep_cli.logs import logs
from emosteer.sweep_cli.ls import ls
from emosteer.sweep_cli.power import power
from emosteer.sweep_cli.report import report
from emosteer.sweep_cli.retry import retry
from emosteer.sweep_cli.status import status
from emosteer.sweep_cli.sync import sync
from emosteer.sweep_cli.watch import watch

CANNOT = 2
"""Exit code of a command that could not do what it was asked; also Typer's own, for wrong arguments."""
INTERRUPTED, PIPE_CLOSED = 130, 141
"""What a shell says of a process that SIGINT or SIGPIPE ended."""


class Commands(TyperGroup):
    """Runs a command, and tells the user's errors in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes once more when it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = PIPE_CLOSED
        except KeyboardInterrupt:
            code = INTERRUPTED
        except EmosteerError as error:
            typer.echo(str(error), err=True)
            code = CANNOT
        except OSError as error:
            typer.echo(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), err=True)
            code = CANNOT
        else:
            return result
        raise typer.Exit(code)


app = typer.Typer(cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"emosteer-sweep {emosteer.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def about(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Look after the sweeps of `emosteer`: what became of them, their results again, and the store that they share.

    A sweep is a directory under outputs/, with the name that `emosteer name=...` gave it ("default" without). Its cells lie in a
    store, by default outputs/store. Every command takes a sweep by name or by directory, and with --json prints JSON, and
    nothing else, on stdout.

    \b
    Examples:
      emosteer-sweep ls               which sweeps are there, and how far they are
      emosteer-sweep status default   what is done, what failed and why
      emosteer-sweep watch default    the same while it runs
      emosteer-sweep logs default ID  what was written about a cell
      emosteer-sweep report default   tables, figures and report.html again
      emosteer-sweep figures default  PDF, PNG and LaTeX for a paper
      emosteer-sweep sync default     its runs to Weights & Biases
      emosteer-sweep dashboard default
                                      a view and a report of them there
      emosteer-sweep power default --effect 1
                                      how many prompts an effect needs
      emosteer-sweep compare default other
                                      two sweeps cell by cell
      emosteer-sweep export default   the best cell's vector, for use elsewhere
      emosteer-sweep chat default     talk to the model, steered with it
      emosteer-sweep retry default    run again what failed
      emosteer-sweep cancel default   end its SLURM jobs
      emosteer-sweep workers add default 4
                                      four more SLURM workers
      emosteer-sweep gc               what could be deleted from outputs/store

    \b
    Exit codes:
      0    all well
      1    something failed: a cell, a file that could not be deleted
      2    not done: a wrong argument, no such sweep, a file that is damaged or
           cannot be read
      3    `status` and `watch` only: not finished yet, nothing failed
      130  interrupted by ctrl-C
    """  # noqa: D301 - \b keeps the lines of a paragraph
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


for command in (ls, status, watch, logs, report, figures, sync, dashboard, compare, export, chat, power, retry, cancel, gc):
    app.command()(command)
app.add_typer(workers.app, name="workers")


def main() -> None:
    """Entry point of the command."""
    # Results go to stdout, and what is said about the work to stderr.
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("emosteer").setLevel(logging.INFO)
    try:
        app(prog_name="emosteer-sweep")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
