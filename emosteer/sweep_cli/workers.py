"""`emosteer-sweep workers`: who works on a sweep on SLURM, and more of them."""

from __future__ import annotations

from typing import Annotated

import typer

from emosteer.errors import EmosteerError
from emosteer.overview import overview
from emosteer.slurm.following import tell
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.crew import crew
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.outlook import n_left, slurm_data
from emosteer.sweep_cli.printing import count, one_line, print_json
from emosteer.sweep_cli.showing import show_workers
from emosteer.sweep_cli.submitting import submit_again, submitted_data

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def workers() -> None:
    """Bring a sweep more SLURM workers, or list them.

    \b
    Examples:
      emosteer-sweep workers list default
      emosteer-sweep workers add default 4

    JSON: see each command, `emosteer-sweep workers add --help`. On disk `list` changes nothing, and `add` what a submission does.

    \b
    Exit codes:
      0  listed, or submitted
      2  not done: no such sweep, or SLURM's reason
    """  # noqa: D301 - \b keeps the lines of a paragraph


@app.command("add")
def add(
    sweep: SweepArgument,
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="How many more.")],
    as_json: JsonOption = False,
) -> None:
    """Submit N more workers for a sweep.

    They get what the last submission asked SLURM for (partition, time, memory, ...), join those that are there, and a job behind them
    builds the results. On disk the submission is written into the sweep's slurm/.

    \b
    Examples:
      emosteer-sweep workers add default 4
      emosteer-sweep workers add /scratch/me/outputs/layers 16 --json

    \b
    JSON:
      sweep, directory
      submitted {workers, earlier_workers, jobs, finaliser}: new ones and those
                that were there; job ids of the arrays and of the job for the
                results

    \b
    Exit codes:
      0  submitted
      2  no such sweep; never submitted before; nothing left to do; SLURM does
         not take them (nothing is submitted then), or does not answer
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    if not n_left(overview(found)):
        raise EmosteerError(f"{found.name}: nothing is left to do for more workers; `emosteer-sweep status {found.name}` tells more")
    submitted = submit_again(found, more=number)
    if as_json:
        print_json({"sweep": found.name, "directory": str(found.paths.root), "submitted": submitted_data(submitted)})
    else:
        tell(found, submitted)


@app.command("list")
def list_(sweep: SweepArgument, as_json: JsonOption = False) -> None:
    """List all SLURM workers of a sweep, those that ended too.

    A line for each start of a job. No record is read, so that it is fast for large sweeps; `status` also tells what each holds, and
    explains the states. On disk nothing is changed.

    \b
    Examples:
      emosteer-sweep workers list default
      emosteer-sweep workers list default --json |
        jq '.workers[] | select(.state == "lost")'

    \b
    JSON:
      sweep, directory
      workers, slurm   as in `status`, without `running`

    \b
    Exit codes:
      0  listed; also where SLURM does not answer, which is said
      2  no such sweep, or a file of it is damaged
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    seen = crew(found)
    if as_json:
        rows = [{key: value for key, value in one.as_data().items() if key != "running"} for one in seen.members]
        print_json({"sweep": found.name, "directory": str(found.paths.root), "workers": rows, "slurm": slurm_data(seen)})
        return
    if seen.silence is not None:
        typer.echo(f"SLURM does not answer: {one_line(seen.silence)}", err=True)
    if seen.members:
        show_workers(seen.members)
    else:
        typer.echo(f"{found.name}: no workers, it was never submitted to SLURM", err=True)
    states = ", ".join(f"{n:,} {state}" for state, n in seen.counts().items())
    if states:
        typer.echo(f"\n{count(len(seen.members), 'worker')}: {states}")
