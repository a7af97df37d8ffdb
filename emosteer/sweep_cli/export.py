"""`emosteer-sweep export`: the vector of a chosen cell, for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emosteer.errors import EmosteerError
from emosteer.progress import working
from emosteer.sweep_cli.arguments import CellArgument, JsonOption, SweepArgument
from emosteer.sweep_cli.finding import cell_called, open_sweep
from emosteer.sweep_cli.printing import print_json, short

if TYPE_CHECKING:
    from emosteer.exporting import Exported
    from emosteer.records.cell import Cell
    from emosteer.records.sweep import Sweep

KINDS = ("safetensors", "gguf")


def export(
    sweep: SweepArgument,
    cell: CellArgument = None,
    pair: Annotated[str | None, typer.Option(help="Where no cell is named: the best of this pair.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="By default exports/<cell> in the sweep's directory.")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="safetensors or gguf; may be given twice. By default all that can hold it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a cell's vector for use elsewhere, with a card.

    Without a cell it is the best readable one, as in the summary. vector.safetensors holds all blocks, for emosteer;
    control_vector.gguf what the cell adds at its blocks, for llama.cpp (a scale of 1 is the cell's coefficient) and repeng; README.md
    is a model card: what the vector does, with the measured numbers and the limits. In Python emosteer.to_steering_vectors and
    emosteer.to_repeng give those libraries' own objects. Needs no model. Files that are there already are replaced.

    \b
    Examples:
      emosteer-sweep export default
      emosteer-sweep export default joy_sadness-L9-c0.2 --to joy
      emosteer-sweep export default --pair trust_disgust --format gguf

    \b
    JSON:
      cell_id, directory
      files     {safetensors, gguf, card}, those that were written
      left_out  {format: why}

    \b
    Exit codes:
      0  written
      2  no such sweep, cell or pair, the cell is not done, no cell is
         readable, a format that cannot hold the vector
    """  # noqa: D301 - \b keeps the lines of a paragraph
    for one in formats or ():
        if one not in KINDS:
            raise EmosteerError(f"--format {one}: choose of {', '.join(KINDS)}")
    if cell is not None and pair is not None:
        raise EmosteerError(f"--pair {pair}: the cell {cell} is named already; give one of the two")
    found = open_sweep(sweep)
    chosen = cell_called(found, cell) if cell is not None else None
    done = _exported(found, chosen, pair, to, formats)
    if as_json:
        files = {kind: str(path.absolute()) for kind, path in done.files.items()}
        data = {"cell_id": done.cell.id, "directory": str(done.directory.absolute()), "files": files, "left_out": done.left_out}
        print_json(data)
        return
    typer.echo(f"{done.cell.id}:")
    for path in done.files.values():
        typer.echo(f"  {short(path)}")
    for kind, reason in done.left_out.items():
        typer.echo(f"not as {kind}: {reason}")


def _exported(sweep: Sweep, chosen: Cell | None, pair: str | None, to: Path | None, formats: list[str] | None) -> Exported:
    with working() as work:
        # Here, so that the other commands do not wait for torch and pandas.
        from emosteer import exporting
        from emosteer.tables import build

        if chosen is not None:
            exporting.stored_vector(sweep, chosen)  # what it lacks is told before the tables are built
        work.stage(f"building the tables of {sweep.name}, for the card")
        tables = build(sweep)
        if chosen is None:
            chosen = cell_called(sweep, exporting.best_cell(tables, pair))
        return exporting.export(sweep, tables, chosen, to, formats)
