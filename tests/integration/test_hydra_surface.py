"""All that Hydra gives its users, tried one by one through the command as a careful user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from desk import Desk, Done
from warm import run_warm

from emosteer import __version__

OWN_CODE = '''
"""A library of the user's own: a scorer, and a listener to Hydra's runs."""
import json
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback


def environment(replies):
    say(event="scorer", variable=os.environ.get("MY_VARIABLE"), directory=os.getcwd())
    return {"environment": [1.0 if os.environ.get("MY_VARIABLE") == "set" else 0.0 for _ in replies]}


def say(**facts):
    with Path(os.environ["MY_HEARD"]).open("a") as heard:
        heard.write(json.dumps(facts) + "\\n")


class Listener(Callback):
    def _say(self, event, config, job_return=None, **rest):
        job = config.hydra.job
        facts = {"layer": config.layer, "coefficient": config.coefficient, "config_name": rest.get("config_name")}
        if event.startswith("on_job"):
            facts["output_dir"] = config.hydra.runtime.output_dir
            if config.hydra.mode.name == "MULTIRUN":
                facts |= {"num": job.num, "overrides": list(config.hydra.overrides.task)[-2:], "current": HydraConfig.get().job.num}
        if job_return is not None:
            facts |= {"status": job_return.status.name, "layer_returned": job_return.cfg.layer, "task": job_return.task_name}
        say(event=event, variable=os.environ.get("MY_VARIABLE"), directory=os.getcwd(), **facts)

    def on_run_start(self, config, **rest):
        self._say("on_run_start", config, **rest)

    def on_run_end(self, config, **rest):
        self._say("on_run_end", config, **rest)

    def on_multirun_start(self, config, **rest):
        self._say("on_multirun_start", config, **rest)

    def on_multirun_end(self, config, **rest):
        self._say("on_multirun_end", config, **rest)

    def on_job_start(self, config, task_function, **rest):
        self._say("on_job_start", config, **rest)

    def on_job_end(self, config, **rest):
        self._say("on_job_end", config, **rest)
'''
LISTENING = (
    "+hydra.callbacks.mine._target_=own_code.Listener",
    "+hydra.job.env_set.MY_VARIABLE=set",
    "+scorers.environment._target_=own_code.environment",
)
TINY = ("prompts.limit=2", "generation.max_new_tokens=2", "~scorers.perplexity")
"""Where only the grid is looked at."""

CONFIGS = {
    "pair/calm_panic.yaml": """
name: calm_panic
target: calm
counterpart: panic
primary: positive
path: ${oc.env:MY_DATA}/calm.jsonl
""",
    "model/mine.yaml": """
name: mine
path: ${oc.env:MY_MODEL}
device: cpu
""",
    "prompts/few.yaml": """
name: few
path: ${oc.env:MY_DATA}/few.jsonl
""",
    "dose/weak.yaml": "# @package _global_\ncoefficient: 0.1\nseed: 7\n",
    "dose/strong.yaml": "# @package _global_\ncoefficient: 0.3\nseed: 7\n",
    "dose/wrong.yaml": "# @package _global_\ncoeficient: 0.3\n",
    "hydra/job_logging/mine.yaml": """
version: 1
handlers:
  file: {class: logging.FileHandler, filename: '${hydra.runtime.output_dir}/mine.log'}
root: {level: INFO, handlers: [file]}
disable_existing_loggers: false
""",
    "experiment/study.yaml": """
# @package _global_
defaults:
  - override /pair: calm_panic
  - override /model: mine
  - override /prompts: few
  - override /attribution: none
  - override /tracking: none
  - override /hydra/launcher: local
  - override /hydra/sweeper: basic
  - override /hydra/job_logging: mine
name: study
generation: {max_new_tokens: 4}
statistics: {n_resamples: 199}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      layer: 1,2
      coefficient: 0.1,0.2
""",
}
PRIMARY = """
defaults:
  - config
  - override pair: calm_panic
  - override model: mine
  - override prompts: few
  - override attribution: none
  - override tracking: none
  - _self_
name: primary
layer: 1
generation: {max_new_tokens: 4}
statistics: {n_resamples: 199}
hydra:
  searchpath: ['file://${oc.env:MY_CONFIGS}']
"""
"""A primary configuration of the user's own, whose groups lie in another directory still."""


def emosteer(desk: Desk, *arguments: str, **environment: str) -> Done:
    """The command without the small settings, exactly as given."""
    bare = Desk(desk.directory, desk.model, desk.library, options=(), environment={**desk.environment, **environment})
    process = subprocess.run(
        [sys.executable, "-m", "emosteer.main", *arguments],
        cwd=bare.directory,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(bare.library), "COLUMNS": "100", **bare.environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return Done(process.returncode, process.stdout, process.stderr, bare.marker.exists())


def emosteer_warm(desk: Desk, *arguments: str) -> Done:
    """The same where how it starts is not what is tested."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(desk.library), "COLUMNS": "100", **desk.environment}
    done = run_warm("emosteer.main", list(arguments), desk.directory, environment)
    return Done(done.returncode, done.stdout, done.stderr, imported_torch=True)


@pytest.fixture(scope="module")
def own_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("own_library")
    (directory / "own_code.py").write_text(OWN_CODE)
    return directory


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, own_library: Path) -> Desk:
    """The desk of a user with configurations, data and code of their own."""
    home = tmp_path_factory.mktemp("users")
    for name, text in CONFIGS.items():
        path = home / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (home / "primary").mkdir()
    (home / "primary" / "mine.yaml").write_text(PRIMARY)
    pairs = [{"id": f"c{i}", "positive": f"I am calm on day {i}.", "negative": f"Day {i} scares me!", "topic": "d"} for i in range(8)]
    prompts = [{"id": f"p{i}", "text": f"What about {word}?", "category": "a"} for i, word in enumerate(("rain", "tea", "work"))]
    for name, records in (("calm", pairs), ("few", prompts)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    environment = {
        "MY_DATA": str(home),
        "MY_MODEL": str(tiny_directory),
        "MY_CONFIGS": str(home / "configs"),
        "MY_HEARD": str(home / "heard.jsonl"),
    }
    return Desk(home, tiny_directory, own_library, environment=environment)


@pytest.fixture
def mine(tmp_path: Path, tiny_directory: Path, own_library: Path) -> Desk:
    """A fresh desk with the user's code beside it."""
    return Desk(tmp_path, tiny_directory, own_library, environment={"MY_HEARD": str(tmp_path / "heard.jsonl")})


def heard(desk: Desk) -> list[dict[str, Any]]:
    """What the user's code noted, in order."""
    return [json.loads(line) for line in Path(desk.environment["MY_HEARD"]).read_text().splitlines()]


def points(results: pd.DataFrame) -> list[tuple[int, float]]:
    """The layers and coefficients of a sweep's cells."""
    cells = results.query("not is_control")
    return sorted(zip(cells["layer"].tolist(), cells["coefficient"].tolist(), strict=True))


def sweep_of(desk: Desk, *parts: str) -> pd.DataFrame:
    return pd.read_parquet(desk.directory.joinpath(*parts, "results.parquet"))


# What is shown without running anything

SHOWN: dict[tuple[str, ...], str] = {
    ("--help",): "knobs that matter",
    ("--help", "--resolve"): "knobs that matter",
    ("--hydra-help",): "--multirun",
    ("--version",): f"emosteer {__version__} (Hydra 1.",
    ("--cfg=job",): "name: ${basename",
    ("--cfg=hydra",): "hydra_plugins.emosteer.local.LocalLauncher",
    ("--cfg=all",): "coefficient_unit: fraction",
    ("--cfg=job", "--package=pair"): "# @package pair\nname: joy_sadness",
    ("--cfg=all", "--package=hydra.sweep"): "subdir: jobs/${hydra.job.num}",
    ("--cfg=all", "--resolve"): "dir: outputs/default",
    ("--info",): "Config search path",
    ("--info=all",): "GridSweeper",
    ("--info=config",): "coefficient_unit: fraction",
    ("--info=defaults",): "pair/joy_sadness",
    ("--info=defaults-tree",): "model: custom",
    ("--info=plugins",): "LocalLauncher",
    ("--info=searchpath",): "pkg://hydra.conf",
    ("-sc", "install=bash"): "hydra_bash_completion",
    ("-sc", "install=zsh"): "hydra_bash_completion",
    ("-sc", "install=fish"): "hydra_fish_completion",
    ("-sc", "uninstall=bash"): "unset hydra_bash_completion",
}


@pytest.mark.parametrize("flags", SHOWN, ids=" ".join)
def test_what_hydra_shows_it_shows(desk: Desk, flags: tuple[str, ...]) -> None:
    # model=custom has a value that is missing: all but --resolve must do without it.
    overrides = ["model=custom"] if flags[0] not in ("-sc", "--hydra-help") else []
    if flags[-1] == "--resolve":
        overrides.append("model.path=somewhere")
    done = emosteer(desk, *overrides, *flags)

    assert done.code == 0, done.text
    assert SHOWN[flags] in done.out
    assert "Traceback" not in done.text
    assert done.err == ""
    assert list(desk.directory.iterdir()) == [], "something was written"


def test_every_interpolation_of_the_configuration_resolves(desk: Desk) -> None:
    done = emosteer(desk, "--cfg", "job", "--resolve", "model=custom", "model.path=a/place", "objective=beyond_random")
    config = yaml.safe_load(done.out)

    assert "${" not in done.out
    assert config["model"]["name"] == "place"
    assert config["objective"]["column"] == "joy_beyond_random"


def test_deleted_keys_and_groups_have_their_defaults(desk: Desk) -> None:
    """What `~` takes away has the schema's value again; a scorer, which has none, is gone."""
    kept, deleted = (
        yaml.safe_load(emosteer(desk, "--cfg", "job", *arguments).out)
        for arguments in ((), ("~tracking", "~objective", "~worker", "~seed", "~scorers.perplexity"))
    )

    assert (kept["tracking"]["name"], deleted["tracking"]["name"]) == ("wandb", "none")
    assert deleted["worker"] == kept["worker"]
    assert "seed" not in deleted
    assert set(kept["scorers"]) - set(deleted["scorers"]) == {"perplexity"}


def test_a_config_path_of_the_users_own_works_with_ours_in_the_search_path(users: Desk) -> None:
    searched = f"hydra.searchpath=[pkg://emosteer.conf,file://{users.environment['MY_CONFIGS']}]"
    done = emosteer(users, "-cp", str(users.directory / "primary"), "-cn", "mine", "--cfg", "job", searched)

    assert done.code == 0, done.text
    assert yaml.safe_load(done.out)["pair"]["target"] == "calm"


REFUSED_FLAGS: dict[tuple[str, ...], str] = {
    ("--resolve",): "--cfg",
    ("--cfg=job", "-m"): "Only one of",
    ("--cfg=hydra", "--resolve"): "--cfg all",
    ("--config-dir=nowhere",): "nowhere' not found",
    ("--config-path=nowhere",): "--config-dir",
    ("~layer",): "layer: missing; give layer=...",
    ("~pair",): "give pair.name=...",
    ("~nothing",): "nothing",
    ("layer=1,2",): "add -m",
    ("-cn", "nowhere"): "nowhere",
    ("-sc", "install=csh"): "bash fish zsh",
    ("-sc", "instal=bash"): "install",
    ("-m", "layer=1,2", "hydra.sweeper.max_batch_size=0"): "hydra.sweeper.max_batch_size=0",
}


@pytest.mark.parametrize("arguments", REFUSED_FLAGS, ids=" ".join)
def test_what_cannot_be_done_is_told_in_a_line(desk: Desk, arguments: tuple[str, ...]) -> None:
    done = emosteer(desk, *arguments)

    assert done.code == 1
    assert REFUSED_FLAGS[arguments] in done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert list(desk.directory.iterdir()) == []


def test_a_reader_that_leaves_is_no_error(desk: Desk) -> None:
    shown = subprocess.Popen(
        [sys.executable, "-m", "emosteer.main", "--info"], cwd=desk.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()

    assert shown.stderr.read() == b""
    shown.wait(timeout=60)


# Tab completion

COMPLETED = {
    "pair=": ["pair=joy_sadness", "pair=trust_disgust", "pair=custom"],
    "-m pair=j": ["pair=joy_sadness"],
    "generation.": ["generation.max_new_tokens=", "generation.do_sample="],
    "experiment=demo hydra.sweeper.params.": ["hydra.sweeper.params.layer="],
    "hydra/launcher=": ["hydra/launcher=local", "hydra/launcher=basic"],
    "hydra/sweeper=g": ["hydra/sweeper=grid"],
    "coef": ["coefficient=", "coefficient_unit="],
    "+objective=": ["+objective=beyond_random"],
}


def complete(desk: Desk, line: str, **environment: str) -> Done:
    return emosteer(desk, "-sc", "query=bash", COMP_LINE=f"emosteer {line}", COMP_POINT=str(len(line) + 9), **environment)


@pytest.mark.parametrize("line", COMPLETED)
def test_tab_completes(desk: Desk, line: str) -> None:
    done = complete(desk, line)

    assert done.code == 0, done.text
    assert set(COMPLETED[line]) <= set(done.out.split())


def test_tab_completes_groups_of_the_users_own(users: Desk) -> None:
    assert "pair=calm_panic" in complete(users, "--config-dir configs pair=c").out.split()


@pytest.mark.parametrize("line", ["layer.x", "model=custom model.name=", "--cfg jo", "--bogus pair=", "model.path=x[ pair="])
def test_tab_in_a_line_with_a_mistake_writes_nothing_over_it(desk: Desk, line: str) -> None:
    done = complete(desk, line)

    assert done.out.strip() == ""
    assert done.err == ""


def test_a_real_bash_completes(desk: Desk) -> None:
    """As bash does it: the words, the cursor and the function that `complete` has registered."""
    script = """
    eval "$(emosteer -sc install=bash)"
    complete -p emosteer | grep -q hydra_bash_completion || exit 3
    tab() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); hydra_bash_completion; }
    tab "emosteer -m pair=t"; echo "${COMPREPLY[@]}"
    tab "emosteer generation.max"; echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=desk.directory, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )

    assert done.stdout.splitlines() == ["pair=trust_disgust", "generation.max_new_tokens="], done.stderr


# Configurations of the user's own


def test_help_lists_the_users_own_options(users: Desk) -> None:
    done = emosteer(users, "--config-dir", "configs", "--help")

    assert done.code == 0, done.text
    assert "calm_panic" in done.out
    assert "study" in done.out


@pytest.fixture(scope="module")
def study(users: Desk) -> Done:
    """The user's experiment with all their groups; one axis is given anew, and what reads the variable is added."""
    return emosteer_warm(
        users, "--config-dir", "configs", "experiment=study", "coefficient=0.3", "controls=none", "~scorers.perplexity"
    )


def test_an_experiment_of_the_users_own_sweeps_without_a_flag_and_the_command_line_wins(users: Desk, study: Done) -> None:
    assert study.code == 0, study.text
    results = sweep_of(users, "outputs", "study")
    assert points(results) == [(1, 0.3), (2, 0.3)]
    assert set(results["pair"]) == {"calm_panic"}
    assert set(results["primary"]) == {"positive"}
    assert set(results["model"]) == {"mine"}
    assert set(results["prompts"]) == {"few"}
    replies = pd.read_parquet(users.directory / "outputs" / "study" / "replies.parquet")
    assert set(replies["prompt"]) == {"What about rain?", "What about tea?", "What about work?"}


def test_an_experiment_chooses_launcher_sweeper_and_logging(users: Desk, study: Done) -> None:
    multirun = yaml.safe_load((users.directory / "outputs" / "study" / "multirun.yaml").read_text())["hydra"]

    assert multirun["sweeper"]["_target_"].endswith("BasicSweeper")
    assert multirun["launcher"]["_target_"].endswith("LocalLauncher")
    # Jobs run together: their log is one, and lies where the sweep does.
    assert "loading mine" in (users.directory / "outputs" / "study" / "mine.log").read_text()
    assert "loading mine" not in study.err


@pytest.fixture(scope="module")
def primary(users: Desk) -> Done:
    """A single run of a primary configuration of the user's own, with whatever a single run can be given."""
    Path(users.environment["MY_HEARD"]).unlink(missing_ok=True)
    return emosteer_warm(
        users,
        *("--config-dir", "primary", "-cn", "mine"),
        *LISTENING,
        "controls=none",
        "hydra.run.dir=my/place",
        "hydra.job.chdir=true",
        "hydra/job_logging=mine",
        "+strength=0.15",
        "coefficient=${strength}",
        "store=${hydra:runtime.cwd}/my/store",
    )


def test_a_primary_configuration_of_the_users_own_builds_on_ours(users: Desk, primary: Done) -> None:
    assert primary.code == 0, primary.text
    place = users.directory / "my" / "place"
    assert points(sweep_of(users, "my", "place")) == [(1, 0.15)]
    assert (place / ".hydra" / "overrides.yaml").read_text().splitlines()[-2:] == [
        "- coefficient=${strength}",
        "- store=${hydra:runtime.cwd}/my/store",
    ]
    assert "loading mine" in (place / "mine.log").read_text()
    # With hydra.job.chdir the process works in its directory; paths mean what they meant where the command was given.
    assert (users.directory / "my" / "store" / "cells").is_dir()
    assert not (place / "my").exists()


def test_a_single_run_tells_its_listeners(users: Desk, primary: Done) -> None:
    assert primary.code == 0, primary.text
    told = heard(users)
    assert [fact["event"] for fact in told] == ["on_run_start", "on_job_start", *["scorer"] * 2, "on_job_end", "on_run_end"]
    assert [fact["variable"] for fact in told] == [None, "set", "set", "set", None, None], "set for the job, and put back"
    assert {fact["layer"] for fact in told if "layer" in fact} == {1}
    assert told[-1]["status"] == "COMPLETED"


def test_a_mistake_shows_its_traceback_where_hydra_is_asked_to(desk: Desk) -> None:
    short, full = (emosteer(desk, "layr=1", HYDRA_FULL_ERROR=value) for value in ("0", "1"))

    assert (short.code, full.code) == (1, 1)
    assert short.err == "layr: no such key (did you mean layer?); emosteer --help lists all (+layr=... adds one of your own)\n"
    assert full.err.startswith("Traceback")
    assert "ConfigCompositionException" in full.err


def test_a_single_run_is_verbose_pickled_and_run_again(mine: Desk) -> None:
    """hydra.verbose, a log on stdout, Hydra's own callback, and --experimental-rerun of what that left."""
    done = mine.run_warm(
        *TINY,
        *("layer=1", "controls=none", "hydra.verbose=[emosteer]", "hydra/job_logging=stdout"),
        "+hydra.callbacks.saved._target_=hydra.experimental.callbacks.PickleJobInfoCallback",
    )
    assert done.code == 0, done.text
    assert "loading tiny-llama" in done.out
    assert "loading" not in done.err
    before = mine.times()

    again = emosteer(mine, "--experimental-rerun=outputs/tiny/.hydra/config.pickle")

    assert again.code == 0, again.text
    assert "Nothing to run" in again.text
    assert mine.times() == before


# Sweeps


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, own_library: Path) -> tuple[Desk, Done]:
    """A sweep with listeners, directories and a log file of the user's choice, in which one cell fails."""
    home = tmp_path_factory.mktemp("swept")
    desk = Desk(home, tiny_directory, own_library, environment={"MY_HEARD": str(home / "heard.jsonl")})
    done = desk.run_warm(
        "-m",
        *LISTENING,
        "layer=1,2",
        "coefficient=1e39,0.1",
        "controls=none",
        "hydra.sweep.dir=swept/${name}",
        "hydra.sweep.subdir=L${layer}/${hydra.job.num}-${hydra.job.override_dirname}",
        "hydra.job.config.override_dirname.exclude_keys=[model,model.path,model.device,attribution,tracking,prompts.limit,"
        "generation.max_new_tokens,statistics.n_resamples,engine.threads,name,controls,scorers.environment._target_]",
        "hydra/job_logging=default",
        "hydra.output_subdir=null",
        "hydra.job.chdir=true",
    )
    return desk, done


def test_a_failed_cell_is_told_in_a_line_and_leaves_the_others_done(swept: tuple[Desk, Done]) -> None:
    desk, done = swept

    assert done.code == 1
    assert "Traceback" not in done.text, done.text
    assert points(sweep_of(desk, "swept", "tiny").query("status == 'done'")) == [(1, 0.1), (2, 0.1)]
    assert points(sweep_of(desk, "swept", "tiny").query("status == 'failed'")) == [(1, 1e39), (2, 1e39)]


def test_each_jobs_directory_is_a_link_to_its_cell(swept: tuple[Desk, Done]) -> None:
    desk, _ = swept
    links = {
        path.relative_to(desk.directory / "swept" / "tiny").as_posix(): path.resolve()
        for path in (desk.directory / "swept" / "tiny").glob("L*/*")
    }

    assert sorted(links) == [
        "L1/0-coefficient=1e+39,layer=1",
        "L1/1-coefficient=0.1,layer=1",
        "L2/2-coefficient=1e+39,layer=2",
        "L2/3-coefficient=0.1,layer=2",
    ]
    cell = links["L2/3-coefficient=0.1,layer=2"]
    assert cell.parent == desk.store / "cells"
    assert yaml.safe_load((cell / "config.yaml").read_text())["layer"] == 2
    assert not (cell / ".hydra").exists(), "hydra.output_subdir=null"


def test_a_log_file_of_hydras_own_lies_in_the_sweeps_directory(swept: tuple[Desk, Done]) -> None:
    desk, _ = swept

    assert "generating" in (desk.directory / "swept" / "tiny" / "emosteer.log").read_text()


def test_listeners_hear_once_of_each_job_and_of_its_own_values(swept: tuple[Desk, Done]) -> None:
    desk, _ = swept
    told = heard(desk)
    events = Counter(fact["event"] for fact in told)

    assert events == {
        "on_multirun_start": 1,
        "on_job_start": 4,
        "on_job_end": 4,
        "on_multirun_end": 1,
        "scorer": 3,  # two cells that are done, and the baseline
    }
    for event in ("on_job_start", "on_job_end"):
        jobs = [fact for fact in told if fact["event"] == event]
        assert [(job["layer"], job["coefficient"]) for job in jobs] == [(1, 1e39), (1, 0.1), (2, 1e39), (2, 0.1)]
        assert [job["num"] for job in jobs] == [job["current"] for job in jobs] == [0, 1, 2, 3]
        assert all(f"L{job['layer']}/{job['num']}-" in job["output_dir"] for job in jobs)
    ends = [fact for fact in told if fact["event"] == "on_job_end"]
    assert [end["status"] for end in ends] == ["FAILED", "COMPLETED", "FAILED", "COMPLETED"]
    assert [end["layer_returned"] for end in ends] == [1, 1, 2, 2]
    assert {fact["config_name"] for fact in told if fact["event"].startswith("on_multirun")} == {"config"}


def test_the_environment_of_jobs_is_set_while_they_run_and_put_back(swept: tuple[Desk, Done]) -> None:
    desk, _ = swept
    seen = {event: {f["variable"] for f in heard(desk) if f["event"] == event} for event in {f["event"] for f in heard(desk)}}

    assert seen == {
        "on_multirun_start": {None},
        "on_job_start": {"set"},
        "scorer": {"set"},
        "on_job_end": {None},
        "on_multirun_end": {None},
    }


def test_hydras_own_launcher_tells_the_same(swept: tuple[Desk, Done], mine: Desk) -> None:
    """Events, values and order of each job."""
    done = mine.run_warm("-m", *LISTENING, "layer=1,2", "coefficient=1e39,0.1", "controls=none", "hydra/launcher=basic")

    assert done.code == 1
    left_out = ("directory", "output_dir", "overrides")
    ours, theirs = (
        sorted(
            json.dumps({key: value for key, value in fact.items() if key not in left_out})
            for fact in heard(desk)
            if fact["event"] != "scorer"
        )
        for desk in (swept[0], mine)
    )
    assert ours == theirs


def test_numbers_go_on_over_batches(mine: Desk) -> None:
    """Also: a choice, shuffled; values sorted; a key of the user's own that another refers to; a variable that is copied."""
    mine.environment["MY_VARIABLE"] = "set"
    done = mine.run_warm(
        "-m",
        *TINY,
        *LISTENING[::2],
        "hydra.sweeper.max_batch_size=2",
        "layer=shuffle(choice(1,2))",
        "+strength=sort(0.3,0.1,reverse=true)",
        "coefficient=${strength}",
        "hydra.job.env_copy=[MY_VARIABLE]",
        "controls=none",
    )

    assert done.code == 0, done.text
    assert done.err.splitlines().count("loading tiny-llama") == 1, "the model stays loaded between batches"
    assert points(mine.results()) == [(1, 0.1), (1, 0.3), (2, 0.1), (2, 0.3)]
    starts = [fact for fact in heard(mine) if fact["event"] == "on_job_start"]
    assert [start["num"] for start in starts] == [0, 1, 2, 3]
    assert [start["coefficient"] for start in starts] == [0.3, 0.1, 0.3, 0.1]
    assert {path.name for path in (mine.sweep / "jobs").iterdir()} == {"0", "1", "2", "3"}


def test_ranges_globs_and_a_key_inside_a_swept_group(mine: Desk) -> None:
    """Also: Hydra's mode instead of -m, and `++`."""
    done = mine.run_warm(
        *TINY[::2],
        "hydra.mode=MULTIRUN",
        "pair=glob(*_*,exclude=[a*,love*])",
        "generation=greedy,sampled",
        "generation.max_new_tokens=2",
        "layer=range(0,4,2)",
        "coefficient=range(0.1,0.25,0.1)",
        "++controls.random=0",
    )

    assert done.code == 0, done.text
    results = mine.results()
    assert len(results) == 2 * 2 * 2 * 2
    assert set(results["pair"]) == {"joy_sadness", "trust_disgust"}
    assert set(points(results)) == {(0, 0.1), (0, 0.2), (2, 0.1), (2, 0.2)}
    decoded = [json.loads(record.read_text())["cell"]["generation"] for record in mine.records().values()]
    assert {(how["do_sample"], how["max_new_tokens"]) for how in decoded} == {(False, 2), (True, 2)}


def test_groups_of_the_users_own_in_a_search_path_are_swept(users: Desk) -> None:
    done = emosteer_warm(
        users,
        *(
            "-m",
            "hydra.searchpath=[file://configs]",
            "name=searched",
            "layer=1",
            "controls=none",
            "attribution=none",
            "tracking=none",
        ),
        *("pair=calm_panic", "model=mine", "prompts=few", "+dose=weak,strong", *TINY[1:]),
    )

    assert done.code == 0, done.text
    assert points(sweep_of(users, "outputs", "searched")) == [(1, 0.1), (1, 0.3)]
    assert set(sweep_of(users, "outputs", "searched")["seed"]) == {7}


def test_a_mistake_in_a_file_of_the_users_own_is_told_with_the_files_name(users: Desk) -> None:
    done = emosteer(users, "--config-dir", "configs", "+dose=wrong")

    assert done.code == 1
    assert "dose/wrong.yaml: coeficient: no such key (did you mean coefficient?)" in done.err
    assert len(done.err.splitlines()) == 1, done.err
