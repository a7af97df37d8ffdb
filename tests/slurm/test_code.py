"""Jobs run the code of the hour of submission, wherever they lie and whatever home they have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from desk import Desk
from dev_cluster import Cluster
from side_by_side import Bench
from slurm_desk import SlurmDesk

import emosteer
from emosteer.errors import EmosteerError
from emosteer.records.paths import SlurmPaths
from emosteer.slurm import code
from emosteer.slurm.code import is_installed, keep_code
from emosteer.slurm.worker_job import opened

PACKAGE = Path(emosteer.__file__).parent
BROKEN = "raise RuntimeError('this is not what was submitted')\n"


@pytest.fixture
def checkout(tmp_path: Path, bench: Bench) -> Path:
    """A working tree of emosteer and of the user's own scorer, at a path that shells and SLURM may stumble over."""
    directory = tmp_path / 'it\'s 100% "mine" %j'
    shutil.copytree(PACKAGE, directory / "emosteer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(bench.library / "paced.py", directory)
    return directory


def test_editing_the_working_tree_while_jobs_wait_changes_nothing(
    idle_cluster: Cluster, bench: Bench, checkout: Path, undisturbed: Desk
) -> None:
    # The command is given in the checkout, so that Python would find its package before all others.
    desk = SlurmDesk(checkout, bench.model, checkout, cluster=idle_cluster, name="edited")
    desk.submit("setup=['export HOME=/dev/null/home']", overrides=("+hydra.launcher.additional_parameters.hold=true",))
    for path in ("emosteer/worker.py", "emosteer/slurm/worker_job.py", "emosteer/finaliser.py", "paced.py"):
        (checkout / path).write_text(BROKEN)
    idle_cluster.run("scontrol", "release", *{job.partition("_")[0] for job in desk.jobs()})
    desk.wait_for(lambda: set(desk.states().values()) <= {"COMPLETED", "FAILED", "CANCELLED"}, "the jobs have ended")

    assert set(desk.states().values()) == {"COMPLETED"}, desk.diagnosis()
    assert desk.replies() == undisturbed.replies()
    assert len(desk.results()) == len(undisturbed.results())


def test_the_copy_is_what_lay_there(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "PACKAGE", checkout / "emosteer")
    monkeypatch.syspath_prepend(checkout)
    (checkout / "emosteer" / "not_committed.py").write_text("NEW = 1\n")
    (checkout / "paced.py").write_text(
        "import json\nfrom words import FIRST\n\ndef letters(replies):\n    from helpers import deep\n"
    )
    (checkout / "words.py").write_text("FIRST = 1\n")
    (checkout / "helpers").mkdir()
    (checkout / "helpers" / "deep.py").write_text("import words\n")
    paths = SlurmPaths(tmp_path / "slurm")
    first = keep_code(paths, ["paced.letters", "emosteer.scoring.nrc.nrc"])
    assert first is not None
    assert first == keep_code(paths, ["paced.letters"]), "the same code is kept once"
    assert sorted(path.name for path in first.iterdir()) == ["emosteer", "helpers", "paced.py", "words.py"]
    assert (first / "helpers" / "deep.py").exists(), "a package without __init__.py too, and what is imported in a function"
    assert (first / "emosteer" / "not_committed.py").read_text() == "NEW = 1\n"
    assert (first / "emosteer" / "data").is_dir()

    (checkout / "paced.py").write_text("# edited\n")
    assert keep_code(paths, ["paced.letters"]) != first
    assert (first / "paced.py").read_text() != "# edited\n"


def test_of_an_installed_emosteer_the_version_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "is_installed", lambda path: True)
    assert keep_code(SlurmPaths(tmp_path), ["json.dumps"]) is None
    assert is_installed(Path(json.__file__))
    assert not is_installed(PACKAGE)


def test_another_version_refuses_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = SlurmPaths(tmp_path / "slurm")
    submission = {"token": "abc", "name": "x", "options": {}, "store": str(tmp_path), "directory": str(tmp_path), "code": None}
    paths.submissions.mkdir(parents=True)
    paths.submission("abc").write_text(json.dumps(submission | {"version": "9.9"}))
    with pytest.raises(EmosteerError, match=f"this is emosteer {emosteer.__version__}.* submitted by 9.9"):
        opened(tmp_path, "abc")
