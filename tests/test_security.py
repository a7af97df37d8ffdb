"""What lies on disk runs nothing, locks no colleague out, and gives no secret away."""

from __future__ import annotations

import os
import pickle
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from disks import heed_permissions, small_disk
from tiny_models import bare_model, tokenizer_of

import emosteer
from emosteer.config import ModelConfig
from emosteer.errors import EmosteerError
from emosteer.model.language_model import _keep_converted, load
from emosteer.records.claims import Claims
from emosteer.records.publish import publish_directory, publish_file

GROUP = 12345
"""A group that the user of the tests is not in."""
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_secretsecretsecretsecretsecret",
    "WANDB_BASE_URL": "https://someone:pass-in-url@wandb.example.org",
    "MY_DATABASE_PASSWORD": "correct-horse-battery",
}
IN_NETRC = "password-from-netrc-of-forty-characters-x"
LOADERS = re.compile(
    r"\b(?:pickle\.loads?|torch\.load|joblib\.load|np\.load|numpy\.load|yaml\.load|marshal\.loads?)\(|(?<![.\w])(?:eval|exec)\("
)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_nothing_of_ours_unpickles_or_evaluates() -> None:
    package = Path(emosteer.__file__).parent
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in [*package.rglob("*.py"), *(package.parent / "launch").rglob("*.py")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if LOADERS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("container", ["zip", "bare pickle"])
def test_a_malicious_weights_file_is_refused_and_runs_nothing(tmp_path: Path, container: str) -> None:
    model, mark = tmp_path / "model", tmp_path / "mark"
    bare_model("llama", 0).save_pretrained(model)
    tokenizer_of().save_pretrained(model)
    (model / "model.safetensors").unlink()
    if container == "zip":
        torch.save({"weight": Malicious(mark)}, model / "pytorch_model.bin")
    else:
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(mark), protocol=2))

    with pytest.raises(EmosteerError) as caught:
        load(ModelConfig(name="malicious", path=str(model), device="cpu"))

    assert not mark.exists()
    assert re.fullmatch(r"model\.path=.*/model: a \.bin file there holds more than tensors.* give safetensors", str(caught.value))
    pickle.loads((model / "pytorch_model.bin").read_bytes()) if container != "zip" else mark.mkdir()
    assert mark.exists(), "the file is as malicious as the test says"


def test_safetensors_come_before_a_pickle_beside_them(tmp_path: Path) -> None:
    bare_model("llama", 0).save_pretrained(tmp_path / "model")
    tokenizer_of().save_pretrained(tmp_path / "model")
    torch.save({"weight": Malicious(tmp_path / "mark")}, tmp_path / "model" / "pytorch_model.bin")

    load(ModelConfig(name="both", path=str(tmp_path / "model"), device="cpu"))

    assert not (tmp_path / "mark").exists()


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def shared_directory(path: Path) -> Path:
    """As a group's administrator makes it: what is made inside belongs to the group."""
    path.mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(path, -1, GROUP)
    path.chmod(0o2775)
    return path


def locked_out(*roots: Path) -> list[str]:
    """What members of the directory's group could not use as its owner can."""
    group = roots[0].stat().st_gid
    found = []
    for path in (path for root in roots for path in root.rglob("*") if not path.is_symlink()):
        state = path.stat()
        wanted = 0o2775 if path.is_dir() else 0o664
        if state.st_gid != group or stat.S_IMODE(state.st_mode) & wanted != wanted:
            found.append(f"{path}: {stat.filemode(state.st_mode)} {state.st_gid}")
    return found


def test_what_is_published_belongs_to_the_group_of_a_shared_directory(tmp_path: Path) -> None:
    root = shared_directory(tmp_path / "shared")
    with umask(0o002):
        publish_file(root / "deep" / "file", "x")

        def write(directory: Path) -> None:
            (directory / "sub").mkdir()
            (directory / "sub" / "a").write_text("a")

        publish_directory(root / "cells" / "cell", write)
        assert Claims(root / "claims", 60.0).take("cell")
        _keep_converted(bare_model("llama", 0), tokenizer_of(), root / "models" / "converted")

    assert {path.name for path in (root / "models" / "converted").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert locked_out(root) == []


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_what_the_umask_closes_stays_closed(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        publish_file(tmp_path / "private" / "file", "x")
        publish_directory(tmp_path / "private" / "cell", lambda directory: (directory / "a").write_text("a") and None)
        _keep_converted(bare_model("llama", 0), tokenizer_of(), tmp_path / "private" / "converted")

    assert [path for path in (tmp_path / "private").rglob("*") if path.stat().st_mode & mask] == []


def test_a_cache_that_is_full_only_costs_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "cache", "60k") as cache:
        _keep_converted(bare_model("llama", 0), tokenizer_of(), cache / "models" / "converted")

        assert list((cache / "models").iterdir()) == []
    assert len(caplog.messages) == 1
    assert re.search(r"cannot keep the converted weights in .*/converted \(.*\): the next load converts again", caplog.text)


CLOSED = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from emosteer.config import ModelConfig
from emosteer.model import language_model, source
language_model._load_quietly = lambda config, location, options: (location, options)
language_model._keep_converted = lambda *_: print("kept")
found = source.ModelSource(sys.argv[1], "a.gguf", None, "sha256:0", 1)
print(language_model._from_gguf(ModelConfig(name="a", path=sys.argv[1]), found))
print(source.find(ModelConfig(name="a", path=sys.argv[1])).n_blocks)
"""


def test_a_cache_that_is_closed_to_us_only_costs_time(tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    bare_model("llama", 0).save_pretrained(model)
    (cache / "models").mkdir(parents=True)
    cache.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", CLOSED, str(model), str(cache), str(Path(__file__).parent)],
            env={**os.environ, "EMOSTEER_CACHE": str(cache)},
            preexec_fn=heed_permissions,
            capture_output=True,
            text=True,
        )
    finally:
        cache.chmod(0o755)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["kept", f"('{model}', {{'gguf_file': 'a.gguf'}})", "4"]


@dataclass
class Watched:
    """A run in an environment full of secrets, and all that others could see of it."""

    directory: Path
    home: Path
    cache: Path
    text: str
    command_lines: set[str]
    """Of the process and all its children, as `ps` shows them."""


def watch(process: subprocess.Popen[str], seen: set[str]) -> None:
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for one in family:
            try:
                seen.add(Path(f"/proc/{one.pid}/cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue  # ended since
        time.sleep(0.01)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    base = tmp_path_factory.mktemp("watched")
    directory, cache, home = shared_directory(base / "project"), shared_directory(base / "cache"), base / "home"
    bare_model("llama", 0).save_pretrained(base / "model")
    tokenizer_of().save_pretrained(base / "model")
    home.mkdir()
    (home / ".netrc").write_text(f"machine wandb.example.org\n  login user\n  password {IN_NETRC}\n")
    (home / ".netrc").chmod(0o600)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(home), "EMOSTEER_CACHE": str(cache), "TMPDIR": str(base / "tmp"), "HF_HUB_OFFLINE": "1"} | SECRETS
    (base / "tmp").mkdir()
    command = [
        *(sys.executable, "-m", "emosteer.main", "-m", "layer=1", "coefficient=0.1", "model=custom", f"model.path={base / 'model'}"),
        *("model.device=cpu", "attribution=none", "prompts.limit=6", "generation.max_new_tokens=4", "statistics.n_resamples=99"),
        *("engine.threads=1", "tracking=wandb", "tracking.mode=offline", "tracking.wait=true", "name=tiny"),
    ]
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={**environment, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        umask=0o002,
    )
    seen: set[str] = set()
    watcher = threading.Thread(target=watch, args=(process, seen))
    watcher.start()
    text, _ = process.communicate(timeout=180)
    watcher.join()
    assert process.returncode == 0, text
    return Watched(directory, home, cache, text, seen)


@pytest.mark.slow
def test_no_secret_in_files_output_or_the_process_list(watched: Watched) -> None:
    secrets = [*SECRETS.values(), "pass-in-url", IN_NETRC]
    assert list((watched.directory / "outputs" / "tiny" / "wandb").glob("offline-run-*/*.wandb")), "it was tracked"
    roots = (watched.directory, watched.cache, watched.home, watched.home.parent / "tmp")
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and path.name != ".netrc"]
    assert len(files) > 30
    for path in files:
        content = path.read_bytes()
        assert [secret for secret in secrets if secret.encode() in content] == [], path
    assert [secret for secret in secrets if secret in watched.text] == []
    assert any("wandb" in line for line in watched.command_lines), "the children were seen"
    assert [line for line in watched.command_lines if any(secret in line for secret in secrets)] == []


@pytest.mark.slow
def test_a_run_locks_no_member_of_the_group_out(watched: Watched) -> None:
    assert "\n".join(locked_out(watched.directory, watched.cache)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("override", ["hydra.job.env_set.WANDB_API_KEY={}", "+mine.api_key={}", "+tracking.api_key={}"])
def test_a_secret_on_the_command_line_is_refused_and_written_nowhere(tmp_path: Path, override: str) -> None:
    """It stands in the process list already, and Hydra would write it beside the replies."""
    secret = SECRETS["WANDB_API_KEY"]
    for flags in ([], ["-m"]):
        done = subprocess.run(
            [sys.executable, "-m", "emosteer.main", *flags, override.format(secret), "model=custom", "model.path=/nowhere"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr
        assert "export" in done.stderr, done.stderr
        assert secret not in done.stdout + done.stderr
        assert [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()] == []
