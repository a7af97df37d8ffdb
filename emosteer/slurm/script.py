"""Batch scripts. Their text is submitit's, whose keys users know from Hydra's own launcher; what they run is ours.

submitit's own submission pickles a function, and moves the pickle to its place when sbatch has answered: a job whose submitter died
in between finds nothing to run. A job of ours needs nothing but its sweep's directory.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emosteer.errors import EmosteerError
from emosteer.records.paths import SlurmPaths
from emosteer.records.publish import publish_file

SBATCH_NAMES = {"timeout_min": "time", "mem_gb": "mem"}
"""What submitit's general parameters are called in its executor for SLURM."""
OUTPUT = "/output-of-emosteer"
"""Stands in submitit's text for the directory of the output files."""
NO_SUBMITIT = "hydra/launcher=slurm needs submitit: pip install 'emosteer[slurm]'"


def write_script(
    paths: SlurmPaths,
    name: str,
    module: str,
    arguments: Sequence[str],
    parameters: Mapping[str, Any],
    python: str | None = None,
    code: Path | None = None,
    n_tasks: int | None = None,
) -> Path:
    """Write the batch script of a job.

    Args:
        paths: of the sweep.
        name: of the job.
        module: that the job runs, as `python -m`.
        arguments: of that module.
        parameters: of sbatch, by submitit's names.
        python: shell words that start Python there, such as `apptainer exec --nv image.sif python`; None for this interpreter.
        code: a directory that goes before all others on Python's path.
        n_tasks: of the array; None for a job that is none.

    Raises:
        EmosteerError: submitit is missing.
        Unwritable: the sweep's directory cannot be written.
    """
    if any(character in str(paths.root) for character in "\n\r"):
        raise EmosteerError(
            f"{str(paths.root)!r}: a batch script cannot name a path with a line break; give another name or directory"
        )
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError:
        raise EmosteerError(NO_SUBMITIT) from None
    executor = SlurmExecutor(OUTPUT)
    # A line that fails ends the job: what it was to prepare would be missing.
    setup = ["set -e", *(parameters.get("setup") or []), "set +e"]
    if code is not None:
        setup.append(f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    given = {SBATCH_NAMES.get(key, key): value for key, value in parameters.items() if value is not None}
    if "mem" in given:
        given["mem"] = f"{round(given['mem'] * 1024)}M"
    # submitit marks its jobs with a workload key, which some sites refuse.
    executor.update_parameters(**given | {"setup": setup, "job_name": name, "wckey": None})
    if n_tasks is not None:
        executor.parameters["map_count"] = n_tasks
    # -P: else a checkout in which the command was given would come before the copy of its code.
    command = " ".join([python or shlex.quote(sys.executable), "-P", "-u", "-m", module, shlex.join(arguments)])
    path = paths.script(name)
    # In names of output files % begins a pattern, of SLURM's and of submitit's, which replaces some.
    text = executor._make_submission_file_text(command, name).replace(OUTPUT, shlex.quote(str(paths.output).replace("%", "%%")))
    # sbatch copies it: what becomes of the file later changes nothing.
    publish_file(path, text)
    paths.output.mkdir(parents=True, exist_ok=True)
    return path
