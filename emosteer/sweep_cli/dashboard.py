"""`emosteer-sweep dashboard`: a sweep's view and report in Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from emosteer.errors import EmosteerError
from emosteer.progress import working
from emosteer.records.cell import CELL
from emosteer.records.publish import publish_json, read_json
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.printing import print_json

if TYPE_CHECKING:
    from emosteer.records.sweep import Sweep


def dashboard(
    sweep: SweepArgument,
    project: Annotated[str | None, typer.Option(help="Another project than the sweep's.")] = None,
    entity: Annotated[str | None, typer.Option(help="Another user or team than the sweep's.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Make new ones, also where there are some.")] = False,
    only_show: Annotated[bool, typer.Option("--only-show", help="Print what would be saved, as JSON; asks no server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Save a view and a report of a sweep in Weights & Biases.

    Per pair: the primary effect by layer and coefficient, dose-response curves, the emotion against perplexity, parallel
    coordinates; then attribution, the grid with q, and the replies beside the baseline's. They show the runs that `sync` uploads,
    also those that come later. Their addresses are kept in the sweep's wandb/dashboard.json, and a second time only told.

    \b
    Examples:
      emosteer-sweep dashboard default
      emosteer-sweep dashboard default --only-show | jq .report

    \b
    JSON:
      sweep, workspace, report   the two addresses
      with --only-show: workspace, report, as they would be sent

    \b
    Exit codes:
      0  saved, or there already
      2  no such sweep, no key, wandb-workspaces is not installed, the server
         refuses
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    if only_show:
        _check_library()
        with working() as work:
            work.stage(f"putting together the view and the report of {found.name}")
            built = _built(found, project, entity or "ENTITY").specification()
        print_json(built)
        return
    file = found.paths.dashboard
    saved = (read_json(file) if file.exists() and not anew else None) or _save(found, project, entity)
    if as_json:
        print_json({"sweep": found.name, **saved})
        return
    for name in ("workspace", "report"):
        typer.echo(f"{name}: {saved[name]}")


def _check_library() -> None:
    from emosteer.tracking.run import is_installed

    if not is_installed("wandb_workspaces"):
        raise EmosteerError('wandb-workspaces is missing: pip install "emosteer[dashboard]"')


def _built(sweep: Sweep, project: str | None, entity: str | None) -> Any:
    from emosteer.tracking.wandb_dashboard import dashboard as build
    from emosteer.tracking.wandb_runs import destination

    cells = [task.cell for task in sweep.tasks() if task.cell.kind == CELL]
    pairs = list(dict.fromkeys(cell.pair.name for cell in cells if cell.pair))
    to = destination(sweep, {"project": project} if project else {})
    return build(to, entity, pairs, len(cells))


def _save(sweep: Sweep, project: str | None, entity: str | None) -> dict[str, str]:
    from emosteer.tracking.wandb_login import is_logged_in, resolve, server

    if not is_logged_in():
        raise EmosteerError(f"no key for {server()}: `wandb login`, or set WANDB_API_KEY")
    _check_library()
    wanted = entity or resolve("entity", sweep.settings()["tracking"].get("entity"))
    try:
        with working() as work:
            work.stage(f"saving the view and the report of {sweep.name} at {server()}")
            saved = dict(_built(sweep, project, wanted).save())
    except EmosteerError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        raise EmosteerError(
            f"{server()} did not take the dashboard ({type(error).__name__}: {line}): check the key and --entity"
        ) from error
    sweep.paths.wandb.mkdir(parents=True, exist_ok=True)
    publish_json(sweep.paths.dashboard, saved)
    return saved
