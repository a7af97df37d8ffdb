"""What a person is told who gets it wrong, and how soon: every mistake of the tests as a real command with the real model.

    python benchmarks/refusals.py [--only WORD] > refusals.md

Prints a Markdown table: what was typed, the line, the seconds. Ends with 1 where a command gave another line than the tests expect,
more than one, or was slower than 3 s (8 s where torch must be asked).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS / "integration"), str(TESTS)]

from bad_input import DEVICES, MISTAKES, Mistake, left_behind, make_bad_files  # type: ignore[import-not-found]  # noqa: E402
from tiny_models import bare_model, tokenizer_of  # noqa: E402

REAL = ("attribution=none", "tracking=none", "layer=1", "name=tiny")
"""What is typed besides, where a mistake does not give the key itself: the model is the default one."""
CUSTOM = ("model.path=", "model.gguf_file=")
SECONDS, SECONDS_WITH_TORCH = 3.0, 8.0


@dataclass(frozen=True)
class Row:
    """One command, and how it ended."""

    typed: str
    line: str
    seconds: float
    fault: str
    """What is wrong with it; empty where nothing is."""


def main() -> None:
    """Run the table, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mistakes that hold this word")
    word = parser.parse_args().only
    with tempfile.TemporaryDirectory() as directory:
        area = Path(directory)
        _save_tiny_model(area / "tiny-llama")
        make_bad_files(area / "bad", area / "tiny-llama")
        print("| typed | told | s |\n|---|---|---|")
        rows: list[Row] = []
        for mistake in (*MISTAKES, *DEVICES):
            for mode in mistake.modes if word in str(mistake) else ():
                rows.append(_run(area, len(rows), mistake, mode))
                print(_markdown(rows[-1]), flush=True)
    faults = [row for row in rows if row.fault]
    print(f"\n{len(rows)} commands, {len(faults)} at fault; the slowest took {max(row.seconds for row in rows):.1f} s.")
    for row in faults:
        print(f"- `{row.typed}`: {row.fault}")
    sys.exit(1 if faults else 0)


def _save_tiny_model(directory: Path) -> None:
    bare_model("llama", 0).save_pretrained(directory)
    tokenizer_of().save_pretrained(directory)


def _run(area: Path, number: int, mistake: Mistake, mode: str) -> Row:
    here = area / f"here-{number}"
    here.mkdir()
    is_custom = any(argument.startswith(CUSTOM) for argument in mistake.given)
    arguments = mistake.arguments(mode, ("model=custom", *REAL) if is_custom else REAL)
    environment = {**os.environ, "PYTHONPATH": str(area / "bad" / "library"), **mistake.environment}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "emosteer.main", *arguments], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    lines = done.stderr.splitlines()
    limit = SECONDS_WITH_TORCH if mistake in DEVICES else SECONDS
    faults = {
        f"{len(lines)} lines": len(lines) != 1,
        f"exit code {done.returncode}": done.returncode != 1,
        "it printed something": bool(done.stdout),
        "it left files": bool(left_behind(here)),
        f"{seconds:.1f} s": seconds > limit,
        "another line": mistake.line not in done.stderr and "tiny-llama" not in mistake.line,
    }
    typed = f"{'-m ' if mode == 'sweep' else ''}{mistake}"
    return Row(typed, lines[-1] if lines else "", seconds, ", ".join(fault for fault, holds in faults.items() if holds))


def _markdown(row: Row) -> str:
    typed, line = (ascii(text)[1:-1].replace("|", "\\|").replace("`", "'") for text in (row.typed, row.line))
    return f"| `{typed}` | {line} | {row.seconds:.1f} |"


if __name__ == "__main__":
    main()
