"""`emosteer-sweep gc`: what may be deleted from a store."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from emosteer.errors import EmosteerError
from emosteer.records.garbage import DAY, HOUR, Deletion, Findings, Garbage, References, delete, find
from emosteer.records.leases import Process
from emosteer.records.paths import SweepPaths
from emosteer.records.store import Store
from emosteer.sweep_cli.arguments import JsonOption
from emosteer.sweep_cli.crew import crew
from emosteer.sweep_cli.finding import OUTPUTS, open_sweep, sweep_directories, sweep_in
from emosteer.sweep_cli.printing import count, print_json, print_table, short

DEFAULT_STORE, DEFAULT_AGE = str(OUTPUTS / "store"), "1d"
MOST_LINES = 40
SECONDS = {"s": 1.0, "m": 60.0, "h": HOUR, "d": DAY, "w": 7 * DAY}


def _seconds(text: str) -> float:
    """`7d`, `12h`, `30m` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if not match:
        raise typer.BadParameter(f"{text}: give a number and a unit, such as 30m, 12h or 7d", param_hint="--older-than")
    return float(match[1]) * SECONDS[match[2]]


Target = Annotated[str, typer.Argument(metavar="STORE_OR_SWEEP", help="A store's directory, or a sweep, for its store.")]
Unreferenced = Annotated[
    bool, typer.Option("--unreferenced", help="Also cells, baselines, attributions and texts that no known sweep refers to.")
]
Sweeps = Annotated[
    list[Path] | None,
    typer.Option("--sweeps", metavar="DIR", help="Sweeps elsewhere: a sweep, or a directory of them. May be repeated."),
]
OlderThan = Annotated[str, typer.Option("--older-than", metavar="AGE", help="Keep what is unreferenced but younger: 30m, 12h, 7d.")]
Delete = Annotated[bool, typer.Option("--delete", help="Delete what is listed. Without it nothing is changed.")]


def gc(
    target: Target = DEFAULT_STORE,
    unreferenced: Unreferenced = False,
    sweeps: Sweeps = None,
    older_than: OlderThan = DEFAULT_AGE,
    do_delete: Delete = False,
    as_json: JsonOption = False,
) -> None:
    """List what nobody reads in a store, and delete it on request.

    Without --delete nothing is changed on disk.

    \b
    What no sweep can miss, listed always:
      unfinished  writes of processes that died (another host's: in an hour),
                  also in the directories of known sweeps
      discarded   records that mode=force replaced
      damaged     records that could not be read, kept for a look
      claim       leases of processes that died (another host's: in a day)
      vector, residual norms
                  to which neither a record nor a known sweep refers, older than
                  --older-than; they are made again when wanted

    \b
    With --unreferenced, also, where older than --older-than:
      cell, baseline, attribution, texts
                  to which no known sweep refers

    What SLURM workers of known sweeps left goes at once, where SLURM and the worker's own silence say that its job has ended.

    A store does not know its sweeps. Those beside it count, and those in --sweeps; they are listed. A sweep that lies elsewhere and
    is not named loses what it refers to, which may be a day of GPU time: name them all.

    Left alone: what a live process claims or writes, symbolic links, and scores of other scorers or versions (another sweep may name
    that scorer, an older emosteer reads them, and they are small).

    \b
    Examples:
      emosteer-sweep gc                    what could go from outputs/store
      emosteer-sweep gc --delete           delete that
      emosteer-sweep gc default            the store of that sweep
      emosteer-sweep gc /data/store --unreferenced --older-than 30d \\
          --sweeps ~/a/outputs --sweeps /scratch/b/outputs

    \b
    JSON:
      store, sweeps [directory], unreferenced, older_than (seconds), delete
      kinds     {kind: {count, bytes}}
      items     [{kind, paths, bytes, why}]
      young     unreferenced, and kept as younger than older_than
      claimed   unreferenced, and kept as a live process claims it
      deleted   {count, bytes}
      changed   how many were left, as they changed meanwhile
      failed    {path: why}

    \b
    Exit codes:
      0  listed, or deleted
      1  something could not be deleted
      2  no such store or sweep; a wrong argument; with --unreferenced, a sweep
         that cannot be read
    """  # noqa: D301 - \b keeps the lines of a paragraph
    age = _seconds(older_than)
    store = _store(target)
    known = _known_sweeps(store, sweeps or [])
    places = [SweepPaths(path) for path in known]
    findings = find(store, _references(known, unreferenced), age, unreferenced, places, _gone(known))
    deletion = delete(store, findings.garbage, places) if do_delete else Deletion()
    if as_json:
        asked = {"unreferenced": unreferenced, "older_than": age, "delete": do_delete}
        print_json(_as_data(store, known, findings, deletion, asked))
    else:
        _show(store, known, findings, unreferenced, older_than)
        if do_delete:
            _show_deletion(deletion)
        elif findings.garbage:
            typer.echo(f"\nNothing was deleted. To delete it:\n  {_command(target, unreferenced, sweeps or [], older_than)}")
    raise typer.Exit(1 if deletion.failed else 0)


def _store(target: str) -> Store:
    """The store in a directory, or that of a sweep."""
    store = Store(Path(target).absolute())
    if any(store.paths.kinds[kind].is_dir() for kind in ("cells", "texts", "claims")):
        return store
    try:
        return open_sweep(target).store
    except EmosteerError as error:
        if target == DEFAULT_STORE:
            raise EmosteerError(f"no store in {store.paths.root}: give its directory, or a sweep") from None
        raise EmosteerError(f"no store in {store.paths.root}, and as a sweep: {error}") from None


def _known_sweeps(store: Store, elsewhere: Sequence[Path]) -> list[Path]:
    """Directories of the sweeps beside the store and in those that the user names."""
    found = {path.resolve(): None for path in sweep_directories(store.paths.root.parent)}
    for directory in elsewhere:
        named = sweep_directories(directory.expanduser())
        if not named:
            raise EmosteerError(f"--sweeps {directory}: no sweep there")
        found |= {path.resolve(): None for path in named}
    return list(found)


def _references(directories: Iterable[Path], must_know: bool) -> References | None:
    """What sweeps refer to; None, and a word on stderr, where one cannot be read and that is no danger."""
    references = References()
    try:
        for directory in directories:
            references.add_sweep(sweep_in(directory))
    except (EmosteerError, OSError) as error:
        if must_know:
            raise EmosteerError(f"--unreferenced needs every sweep: {error}") from None
        typer.echo(f"vectors and residual norms are left alone, as a sweep cannot be read: {error}", err=True)
        return None
    return references


def _gone(directories: Iterable[Path]) -> dict[Process, float]:
    """The SLURM workers of sweeps that have ended for certain, and when they wrote last. SLURM that does not answer is asked once."""
    gone: dict[Process, float] = {}
    answers = True
    for directory in directories:
        try:
            found = crew(sweep_in(directory), answers)
        except (EmosteerError, OSError):
            continue  # told already; what its workers left waits for its time
        gone |= found.gone
        answers = answers and found.silence is None
    return gone


def _by_kind(garbage: Iterable[Garbage]) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for one in garbage:
        total = kinds.setdefault(one.kind, {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += one.n_bytes
    return kinds


def _as_data(store: Store, known: list[Path], findings: Findings, deletion: Deletion, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "store": str(store.paths.root),
        "sweeps": [str(path) for path in known],
        **asked,
        "kinds": _by_kind(findings.garbage),
        "items": [{"kind": g.kind, "paths": list(map(str, g.paths)), "bytes": g.n_bytes, "why": g.why} for g in findings.garbage],
        "young": findings.n_young,
        "claimed": findings.n_held,
        "deleted": {"count": len(deletion.deleted), "bytes": sum(one.n_bytes for one in deletion.deleted)},
        "changed": len(deletion.changed),
        "failed": {str(path): why for path, why in deletion.failed.items()},
    }


def _show(store: Store, known: list[Path], findings: Findings, unreferenced: bool, older_than: str) -> None:
    typer.echo(f"store:  {store.paths.root}")
    names = ", ".join(str(path) if path.parent != store.paths.root.parent.resolve() else path.name for path in known)
    typer.echo(f"sweeps: {names or 'none beside it, none named with --sweeps'}")
    if not findings.garbage:
        typer.echo("\nNothing to delete.")
    else:
        typer.echo()
        for one in findings.garbage[:MOST_LINES]:
            typer.echo(f"{one.kind}: {_named(one.paths[0], store)} ({decimal(one.n_bytes)}; {one.why})")
        if len(findings.garbage) > MOST_LINES:
            typer.echo(f"and {len(findings.garbage) - MOST_LINES:,} more; --json lists all")
        typer.echo()
        kinds = _by_kind(findings.garbage)
        rows = [[kind, f"{total['count']:,}", decimal(total["bytes"])] for kind, total in kinds.items()]
        both = [len(findings.garbage), sum(one.n_bytes for one in findings.garbage)]
        print_table(("kind", "count", "size"), [*rows, ["all", f"{both[0]:,}", decimal(both[1])]], ("count", "size"))
    if findings.n_young or findings.n_held:
        typer.echo(f"\nunreferenced and kept: {findings.n_young:,} younger than {older_than}, {findings.n_held:,} in use")
    if not unreferenced:
        typer.echo("\nRecords and texts were left alone: --unreferenced looks for those that no sweep refers to.")


def _named(path: Path, store: Store) -> str:
    """A path as seen from the store, where it lies there."""
    root = store.paths.root
    return str(path.relative_to(root)) if path.is_relative_to(root) else short(path)


def _show_deletion(deletion: Deletion) -> None:
    size = decimal(sum(one.n_bytes for one in deletion.deleted))
    typer.echo(f"\nDeleted: {count(len(deletion.deleted), 'thing')}, {size}.")
    if deletion.changed:
        typer.echo(f"Left alone, as they changed meanwhile: {len(deletion.changed):,}.")
    for path, why in deletion.failed.items():
        typer.echo(f"{path}: {why}", err=True)


def _command(target: str, unreferenced: bool, sweeps: Sequence[Path], older_than: str) -> str:
    """The command that deletes what this one lists."""
    line = ["emosteer-sweep", "gc", *([target] if target != DEFAULT_STORE else []), *(["--unreferenced"] if unreferenced else [])]
    for directory in sweeps:
        line += ["--sweeps", str(directory)]
    return shlex.join([*line, *(["--older-than", older_than] if older_than != DEFAULT_AGE else []), "--delete"])
