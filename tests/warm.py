"""Commands in processes that need not import torch and its like, which takes longer than a tiny model's whole sweep.

A server imports them once, and forks for each command: the command has a process, a directory and an environment of its own, and
imports emosteer itself. What a command's start is like, and what it imports, is to be tested in a process of a person's.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NoReturn

LIBRARIES = (
    "hydra.main",
    "matplotlib.pyplot",
    "pandas",
    "plotly.graph_objects",
    "pyarrow.parquet",
    "scipy.stats",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What they import that is not ours. None of them starts a thread, which a fork would lose."""
PATIENCE_SECONDS = 180


def run_warm(module: str, arguments: list[str], directory: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a module as `python -m` does, to its end.

    Raises TimeoutError where it takes longer than three minutes.
    """
    with tempfile.TemporaryDirectory() as said:
        out, err = Path(said, "out"), Path(said, "err")
        order = {
            "argv": [module, *arguments],
            "cwd": str(directory),
            "environment": dict(environment),
            "out": str(out),
            "err": str(err),
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server of warm processes has died"
        code = int(answer)
        done = subprocess.CompletedProcess([module, *arguments], code, out.read_text(), err.read_text())
    if code == -signal.SIGALRM:
        raise TimeoutError(f"{done.args}: not done after {PATIENCE_SECONDS} s\n{done.stdout}{done.stderr}")
    return done


@cache
def _server() -> subprocess.Popen[str]:
    # What libraries read when they are imported, as a desk's commands have it.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parent,
    )
    atexit.register(server.communicate)  # It ends when its input does.
    return server


def _serve() -> NoReturn:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
    sys.exit()


def _become(order: dict[str, object]) -> NoReturn:
    """Be the command."""
    signal.alarm(PATIENCE_SECONDS)  # Unheard, it ends the process.
    for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        os.dup2(os.open(str(path), os.O_RDWR | os.O_CREAT), number)
    os.chdir(str(order["cwd"]))
    os.environ.clear()
    os.environ.update(order["environment"])  # type: ignore[call-overload]
    module, *arguments = order["argv"]  # type: ignore[misc]
    known = [path for path in sys.path if path != str(Path(__file__).parent)]
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in known]
    sys.path[:] = [str(order["cwd"]), *added, *known]
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    _serve()
