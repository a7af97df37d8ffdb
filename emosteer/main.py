"""The command `emosteer`: one cell, or with -m a sweep of them."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from emosteer.config import register
from emosteer.endings import Stopped, open_streams, say_goodbye, stopped_by_signals
from emosteer.hydra_jobs import Refused, job, refusals, sweep_directory, with_hydra

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(cfg: DictConfig) -> str | float:
    """Run one cell: by itself, or as a job of one of Hydra's own launchers. Returns its id, or its objective."""
    from emosteer.launcher import failed_tasks, objectives, open_sweep, outcomes, submit, work

    hydra_config = HydraConfig.get()
    with refusals():
        whole = with_hydra(cfg)
        one = job(whole)
        is_single = hydra_config.mode == RunMode.RUN
        directory = Path(hydra_config.run.dir) if is_single else sweep_directory(whole)
        sweep = open_sweep(one.config.store, directory)
        cells = submit([one], sweep)
        work(sweep)
        # After the work: a wrong value is refused without waiting for pandas and matplotlib.
        from emosteer.finaliser import finalise
        from emosteer.tables import build

        tables = finalise(sweep) if is_single else build(sweep)
        outcome = outcomes(sweep, cells)[0]
        if outcome.error:
            raise Refused(f"{outcome.cell.id} failed: {outcome.error}\nsee {sweep.paths.failure(outcome.cell.id)}")
        if is_single and (failed := failed_tasks(sweep)):
            raise Refused(f"{len(failed)} cells failed; see {sweep.paths.failures}")
        return objectives(tables, cells, one.config.objective)[0] if one.config.objective else outcome.cell.id


def main() -> None:
    """Entry point of the command."""
    open_streams()
    try:
        with stopped_by_signals():
            run()
    except Stopped as stopped:
        say_goodbye()
        sys.exit(stopped.exit_code)


if __name__ == "__main__":
    main()
