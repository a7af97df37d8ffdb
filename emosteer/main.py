"""The command `emosteer`: one cell, or with -m a sweep of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import emosteer
from emosteer.checks import check_no_typed_secrets
from emosteer.config import register
from emosteer.cores import prepare_openmp
from emosteer.endings import PROBE_KEPT, Stopped, leaving, open_streams, say_goodbye, stopped_by_signals
from emosteer.hydra_jobs import Refused, job, refusals, sweep_directory, with_hydra
from emosteer.one_line import one_line

FULL_ERROR = "HYDRA_FULL_ERROR"
SHOWING = re.compile(r"--help|-h$|--hydra-help|--version|--cfg|-c\b|--info|-i\b|--shell-completion|-sc\b")
"""Flags that show something instead of running."""
COMPLETING = "COMP_LINE"
"""Set where a shell asks what may follow; it shows what is written to stderr in the middle of the line that is typed."""
CONFIG_FLAGS = re.compile(r"(--config-(?:dir|path|name)|-c[dpn])[= ](\S+)")
"""What on a command line says where configurations lie."""

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(cfg: DictConfig) -> str | float:
    """Run one cell: by itself, or as a job of one of Hydra's own launchers. Returns its id, or its objective."""
    from emosteer.launcher import check_device, failed_tasks, open_sweep, outcomes, submit, work

    hydra_config = HydraConfig.get()
    with refusals():
        composed = with_hydra(cfg)
        is_single = hydra_config.mode == RunMode.RUN
        # Paths mean what they meant where the command was given, also with hydra.job.chdir.
        with contextlib.chdir(hydra_config.runtime.cwd):
            one = job(composed)
            check_device(one.config.model.device)
            directory = Path(hydra_config.run.dir) if is_single else sweep_directory(composed.whole)
            if one.config.probe and is_single:
                with leaving(PROBE_KEPT):
                    from emosteer.probe.command import run as probe

                    probe(one.config, one.overrides, directory)
                return ""
            sweep = open_sweep(one.config.store, directory)
            cells = submit([one], sweep)
        work(sweep)
        # After the work: a wrong value is refused without waiting for pandas and matplotlib.
        from emosteer.finaliser import finalise
        from emosteer.objective import objective_values
        from emosteer.tables import build

        tables = finalise(sweep) if is_single else build(sweep)
        outcome = outcomes(sweep, cells)[0]
        if outcome.error:
            raise Refused(f"{outcome.cell.id} failed: {outcome.error}; see {sweep.paths.failure(outcome.cell.id)}")
        if is_single and (failed := failed_tasks(sweep)):
            raise Refused(f"{len(failed)} cells failed; see {sweep.paths.failures}")
        return objective_values(tables, cells, one.config.objective)[0]


def main() -> None:
    """Entry point of the command: errors for the user in one line, all others as Python shows them."""
    if any(SHOWING.match(argument) for argument in sys.argv[1:]):
        # `emosteer --info | head` ends quietly, as other commands do. A sweep goes on: its results do not go through the pipe.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if "--version" in sys.argv[1:]:
        # Hydra knows its own alone.
        print(f"emosteer {emosteer.__version__} (Hydra {hydra.__version__})")
        return
    # Without it Hydra prints several lines, and leaves; with it, what it raises comes here.
    prepare_openmp()  # a module of the user's may import torch as soon as it is named
    is_full = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"
    open_streams()
    if COMPLETING in os.environ and not is_full:
        # Hydra would complete what it finds without them.
        sys.argv[1:1] = [part for flag in CONFIG_FLAGS.findall(os.environ[COMPLETING]) for part in flag]
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        with stopped_by_signals():
            check_no_typed_secrets(sys.argv[1:])
            run()
    except Stopped as stopped:
        say_goodbye(stopped)
        sys.exit(stopped.exit_code)
    except Exception as error:
        line = one_line(error)
        if is_full or line is None:
            raise
        sys.exit(line)


if __name__ == "__main__":
    main()
