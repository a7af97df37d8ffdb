"""What people get wrong at the keyboard, and a part of the line that tells them: data for the tests and for benchmarks/refusals.py.

Commands are given in a fresh directory; `../bad` holds the files that `make_bad_files` makes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLAIN = (
    "model=custom",
    "model.path=../bad/tiny-llama",
    "model.device=cpu",
    "attribution=none",
    "tracking=none",
    "layer=1",
    "name=tiny",
)
"""What is typed besides, where a mistake does not give the key itself."""
SECRET = "hf-planted-secret"


@dataclass(frozen=True)
class Mistake:
    """One way to get it wrong."""

    given: tuple[str, ...]
    """What is typed after `emosteer`, besides -m."""
    line: str
    """A part of the line that tells it."""
    modes: tuple[str, ...] = ("single",)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = " ".join([*(f"{key}={value}" for key, value in self.environment.items()), *self.given])
        return text if len(text) <= 100 else f"{text[:90]}..."

    def arguments(self, mode: str, plain: tuple[str, ...] = PLAIN) -> list[str]:
        """All that is typed."""
        typed = {argument.lstrip("+~").partition("=")[0] for argument in self.given}
        rest = [argument for argument in plain if argument.partition("=")[0] not in typed]
        flags = [argument for argument in self.given if argument.startswith("-")]
        return [*(["-m"] if mode == "sweep" else []), *flags, *rest, *(a for a in self.given if a not in flags)]


def _both(lines: Mapping[str, str]) -> list[Mistake]:
    """Mistakes of one argument, in single runs and in sweeps."""
    return [Mistake((given,), line, ("single", "sweep")) for given, line in lines.items()]


def _single(lines: Mapping[str, str]) -> list[Mistake]:
    return [Mistake((given,), line) for given, line in lines.items()]


def _sweeps(lines: Mapping[str, str]) -> list[Mistake]:
    return [Mistake((given,), line, ("sweep",)) for given, line in lines.items()]


VALUES = [
    *_both(
        {
            "pair=joy_sadnes": "pair=joy_sadnes: no such option (did you mean joy_sadness?); choose one of",
            "layr=3": "layr: no such key (did you mean layer?)",
            "layer=40": "layer 40 is out of range: ",
            "coefficient=nan": "coefficient=nan: give a finite number",
            "coefficient=strong": "coefficient=strong: give a finite number",
            "scope=reply": "scope=reply: choose one of generated, prompt, all",
            "prompts.limit=0": "prompts.limit=0: give a whole number of at least 1",
            "name=a/b": "name=a/b: one path component",
            "name=..": "name=..: one path component",
            "seed=${hydra:job.num}": "seed=${hydra:job.num}: Hydra's runtime values must not enter a cell's id; give ",
            "seed=${nothing}": "seed: ${nothing} refers to no key; emosteer --cfg all shows every key",
            "generation.max_tokens=4": "generation.max_tokens: no such key (did you mean generation.max_new_tokens?)",
            "pair=custom": "give pair.target=... pair.counterpart=...",
            "vector.method=no.where": "vector.method=no.where: No module named 'no'; is its directory on PYTHONPATH?",
            "+scorers.mine._target_=no.where": "scorers.mine._target_=no.where: No module named 'no'",
        }
    ),
    *_single(
        {
            "layer=1.5": "layer=1.5: a fraction of the depth lies between 0.0 and 1.0; ",
            "layer=-0.1": "layer=-0.1: a fraction of the depth lies between 0.0 and 1.0; ",
            "layer=1e400": "layer=inf: a fraction of the depth lies between 0.0 and 1.0; ",
            "layer=deep": "layer=deep: give a block, a list of blocks, a fraction of the depth, or auto; ",
            "layer=[1,1]": "layer=[1, 1]: give at least one block, each once",
            "~layer": "layer: missing; give layer=...",
            "coefficient=-inf": "coefficient=-inf: give a finite number",
            "coefficient=null": "coefficient=null: give a finite number",
            "site=head": "site=head: choose one of residual, attention, mlp",
            "mode=again": "mode=again: choose one of reuse, retry, force",
            "name=a.": "name=a.: one path component",
            "name=": "name=: one path component",
            "name=[a]": "name=[a]: give a text",
            "seed=1.5": "seed=1.5: give a whole number",
            "prompts.limit=few": "prompts.limit=few: give a whole number",
            "generation.do_sample=maybe": "generation.do_sample=maybe: give true or false",
            "tracking.tags=x": "tracking.tags=x: give a list, such as [a,b]",
            f"tracking.tags=[{'t' * 65}]": f"tracking.tags={'t' * 64}: a tag has 1 to 64 characters",
            "tracking.project=a/b": "tracking.project=a/b: at most 128 characters, none of / ",
            "generation=3": "takes the name of an option, not a number",
            "generation={tokens: 3}": "generation.tokens: no such key",
            "store=": "store='': give a directory",
            "model=smollm": "model=smollm: no such option (did you mean smollm2?); choose one of",
            "model.dtype=float8": "model.dtype=float8: choose one of float32, bfloat16, float16",
            "moodel=smollm2": "moodel: no such key (did you mean model?)",
            "nogroup=x": "nogroup: no such key; emosteer --help lists all",
            "+pair=love_hate": "+pair: there is one already; leave out the +",
            "~pare": "~pare: no such key (did you mean pair?)",
            "+generation.tokens=4": "generation.tokens: no such key; generation has max_new_tokens, ",
            "hydra/launcher=slrm": "hydra/launcher=slrm: no such option",
            "experiment=nothing": "experiment=nothing: no such option; choose one of ",
            "prompts=custom": "give prompts.path=FILE",
            "pair.name=awe": "pair.name=awe: no texts of that name are shipped; give pair.path=FILE",
            "pair.primary=awe": "pair.primary=awe: no scorer measures it; choose one of joy, ",
            "layer=[1": "layer=[1: cannot be read (no viable alternative at input '[1'); quote what holds special characters",
            "layer": "layer: no override; give key=value",
            "name=\u202eabc": r"name=\u202eabc: cannot be read; quote what holds special characters",
            "name='\x1b[31m'": r"name=\x1b[31m: one path component",
            "seed=${seed}": "seed: its interpolation comes back to itself; give a value",
            "seed=${resolver:x}": "seed: ${resolver:...} is no resolver; give a value",
            "store=${oc.env:EMOSTEER_NOT_SET}": "store: the environment variable EMOSTEER_NOT_SET is not set; export it",
            "coefficient=${oc.env:EMOSTEER_NOT_SET}": "coefficient: the environment variable EMOSTEER_NOT_SET is not set; export it",
            "pair.name=${hydra.job.name}": "pair.name=${hydra.job.name}: Hydra's runtime values must not enter a cell's id",
            "seed=1,2": "seed=1,2: several values are a sweep: add -m; or give one list: 'seed=[1,2]'",
            "pair=glob(*)": "pair=glob(*): several values are a sweep: add -m",
            "objective.direction=up": "objective.direction=up: choose one of maximize, minimize",
            "objective.column=happiness": "objective.column=happiness: results have no such column; for example joy_delta",
            "+objective.at_most.joy_delta=nan": "objective.at_most.joy_delta=nan: give a finite number",
            "objective.columm=joy_delta": "objective.columm: no such key (did you mean objective.column?)",
        }
    ),
    Mistake(("objective=beyond_random", "controls=none"), "needs random controls: give controls.random=1 or more"),
    Mistake(("+a=${b}", "+b=${a}", "seed=${a}"), "seed: its interpolation comes back to itself; give a value"),
    *_sweeps(
        {
            "seed=range(0,10001)": "10,001 cells: a sweep has at most 10,000; split it under several names",
            "seed=range(0,1000000000)": "1,000,000,000 cells: a sweep has at most 10,000",
            "coefficient=range(0,1,0.000000001)": "1,000,000,000 cells: a sweep has at most 10,000",
            "coefficient=range(0,inf)": "coefficient=range(0,inf): give a range of finite numbers with a step other than 0",
            "seed=range(0,10,0)": "seed=range(0,10,0): give a range of finite numbers with a step other than 0",
            "pair=glob(z*)": "pair=glob(z*): no value matches, there is nothing to run; give at least one",
            "hydra.sweep.subdir=${nothing}": "hydra.sweep.subdir: ${nothing} refers to no key",
        }
    ),
]

SECRETS = [
    Mistake((given,), "a secret does not belong on a command line or in a configuration")
    for given in (
        f"tracking.api_key={SECRET}",
        f"+wandb_token={SECRET}",
        f"HF_TOKEN={SECRET}",
        f"tracking.password={SECRET},b",
        f"+hf_token=[{SECRET}",
        f"+mine={{api_key: {SECRET}}}",
        f"hydra.job.env_set.WANDB_API_KEY={SECRET}",
    )
]

TEXT_FILES = {
    "nowhere": "nowhere.jsonl: no such file; give the path of a file of JSON lines",
    "": "Is a directory; give the path of a file of JSON lines",
    "empty": "empty.jsonl: no records; write one JSON object a line",
    "broken": "broken.jsonl:2: not a JSON object: ",
    "list": "list.jsonl:2: expected a JSON object, found list; write one a line",
    "keyless": "keyless.jsonl:2: ",
    "twice": "twice.jsonl:2: id 'a' stands already in line 1; ids must differ",
    "latin1": "; save the file as UTF-8",
    "utf16": "utf16.jsonl: not UTF-8 (byte 0); save the file as UTF-8",
    "binary": "; save the file as UTF-8",
    "huge": "huge.jsonl: more than 100,000,000 bytes are no file of texts; give one of JSON lines",
    "deep": "deep.jsonl:1: not a JSON object: ",
    "wide": "wide.jsonl:1: ",
    "loop": "loop.jsonl: Too many levels of symbolic links; give the path of a file",
}


def _text_mistakes() -> list[Mistake]:
    found = []
    for kind, key in (("prompts", "prompts.path"), ("pairs", "pair.path"), ("diagnostics", "pair.diagnostics")):
        for name, line in TEXT_FILES.items():
            path = f"../bad/{kind}/{name}.jsonl" if name else f"../bad/{kind}"
            modes = ("single", "sweep") if (kind, name) in (("prompts", "nowhere"), ("pairs", "broken")) else ("single",)
            given = (f"{key}={path}", *(("attribution=patching",) if kind == "diagnostics" else ()))
            found.append(Mistake(given, line, modes))
    return found


MODELS = {
    "nowhere": "model.path=../bad/nowhere does not exist: give a directory with weights, or a hub id",
    "a-file": "model.path=../bad/a-file is a file: give a directory with weights, or a hub id",
    "empty": "model.path=../bad/empty: no weights there (*.safetensors); give a directory that holds them",
    "no-weights": "model.path=../bad/no-weights: no weights there (*.safetensors); give a directory that holds them",
    "no-config": "no-config/config.json: No such file or directory; a model's directory holds its config.json",
    "cut-head": "cut-head/model.safetensors: a damaged safetensors file (",
    "cut-end": "cut-end/model.safetensors: a damaged safetensors file (",
    "noise": "noise/model.safetensors: a damaged safetensors file (a head of impossible length); fetch or save the model again",
    "no-bytes": "no-bytes/model.safetensors: a damaged safetensors file (",
    "bad-config": "bad-config/config.json: not a model's config.json (",
    "list-config": "list-config/config.json: not a model's config.json (no JSON object); fetch or save the model again",
    "binary-config": "binary-config/config.json: not a model's config.json (",
    "no-blocks": "no-blocks/config.json: says no number of blocks; give one of num_hidden_layers, ",
    "short": "the context of short is 70: shorten it, or lower generation.max_new_tokens",
}
GGUF = {
    "nowhere": "model.path=../bad/gguf: no weights there (nowhere.gguf); give a directory that holds them",
    "zeros": "zeros.gguf: not a GGUF file, or a damaged one (",
    "empty": "empty.gguf: not a GGUF file, or a damaged one (",
    "liar": "liar.gguf: not a GGUF file, or a damaged one (",
}
PLACES = [
    *_both(
        {
            "store=../bad/a-file": "a-file is a file; give another place",
            "store=../bad/a-file/x": "a-file is a file; give another place",
        }
    ),
    *_single({"hydra.run.dir=../bad/a-file": "a-file is a file; give another place", f"store={'x' * 300}": "File name too long"}),
    *_sweeps(
        {"hydra.sweep.dir=../bad/a-file": "is a file; give another place", f"hydra.sweep.dir={'x' * 300}": "File name too long"}
    ),
]
MODEL_MISTAKES = [
    *(
        Mistake((f"model.path=../bad/{name}",), line, ("single", "sweep") if name in ("cut-head", "short") else ("single",))
        for name, line in MODELS.items()
    ),
    *(Mistake(("model.path=../bad/gguf", f"model.gguf_file={name}.gguf"), line) for name, line in GGUF.items()),
    Mistake(("model.path=nobody/nothing",), "model.path=nobody/nothing: no such directory, and the hub does not give it ("),
    Mistake(("prompts.path=../bad/long.jsonl",), "prompts.path=../bad/long.jsonl: prompt 'long' has "),
]
FUNCTIONS = {
    "mine": "give the dotted path of a function, such as my_module.my_function",
    "bad_functions.nothing": "module 'bad_functions' has no attribute 'nothing'; give the dotted path of a function",
    "bad_functions.number": "is no function: give the dotted path of one",
    "bad_raises.f": r"importing it raised RuntimeError: one line\nand another",
    "bad_syntax.f": "importing it raised SyntaxError: ",
    "bad_leaves.f": "importing it raised SystemExit: 3",
    "bad_functions.versioned": "versioned.version='two': give a whole number",
}
FUNCTION_MISTAKES = [
    *(Mistake((f"+scorers.mine._target_={path}",), line) for path, line in FUNCTIONS.items()),
    *(Mistake((f"vector.method={path}",), line) for path, line in FUNCTIONS.items() if "." in path),
    Mistake(
        ("vector.method=ica",),
        "vector.method=ica: choose one of mean_difference, grand_mean, pca, logistic, lda, neutral_projected, random, "
        "or give the dotted path of a function",
    ),
    Mistake(
        ("+scorers.mine._target_=bad_functions.score", "+scorers.mine.dept=3"),
        "an unexpected keyword argument 'dept'; mend its options",
    ),
    *_single(
        {
            "+scorers.mine=3": "scorers.mine=3: give _target_, the dotted path of a function, and its options",
            "+scorers.nrc.unheard=1": "scorers.nrc: emosteer.scoring.nrc.nrc got an unexpected keyword argument 'unheard'",
            "scorers.repetition.n=0": "scorers.repetition: n is 0: repetition needs runs of at least 1 word; its options are",
            "scorers.duplication.first=many": "scorers.duplication: ",
        }
    ),
]
YAML = {
    "syntax": "syntax.yaml:2: not YAML that emosteer reads (expected ',' or ']', but got ':'); mend it there",
    "tab": r"tab.yaml:2: not YAML that emosteer reads (found character '\t' that cannot start any token); mend it there",
    "twice": "twice.yaml:2: not YAML that emosteer reads (found duplicate key name); mend it there",
    "list": "pair/list.yaml: a list where keys with their values are expected",
    "unknown": "pair/unknown.yaml: pair.targt: no such key (did you mean pair.target?)",
    "type": "pair/type.yaml: pair.name: give a text",
    "latin1": "latin1.yaml: not UTF-8 (byte 6); save the file as UTF-8",
    "code": "code.yaml:1: not YAML that emosteer reads (could not determine a constructor for the tag ",
}
CONFIG_DIR = "--config-dir=../bad/conf"
CONFIGURATIONS = [
    *(
        Mistake((CONFIG_DIR, f"pair={name}"), line, ("single", "sweep") if name == "syntax" else ("single",))
        for name, line in YAML.items()
    ),
    Mistake((CONFIG_DIR, "experiment=group"), "pare: no such key (did you mean pair?)"),
    Mistake((CONFIG_DIR, "experiment=option"), "pair=joy: no such option"),
    Mistake((CONFIG_DIR, "experiment=circle"), "a defaults list comes back to its own file"),
    Mistake((CONFIG_DIR, "experiment=axis"), "layr: no such key (did you mean layer?)", ("sweep",)),
    Mistake(("--config-dir=../nowhere",), "not found"),
]
DEVICES = [
    Mistake(("model.device=gpu",), "model.device=gpu: ", ("single", "sweep")),
    Mistake(("model.device=cuda",), "model.device=cuda: ", environment={"CUDA_VISIBLE_DEVICES": ""}),
    Mistake(("model.device=cuda:9",), "model.device=cuda:9: "),
]
"""Only torch knows of them."""
MISTAKES = [
    *VALUES,
    *SECRETS,
    *_text_mistakes(),
    *MODEL_MISTAKES,
    *PLACES,
    *FUNCTION_MISTAKES,
    *CONFIGURATIONS,
]
"""All that is refused without torch."""

GOOD = {
    "prompts": {"id": "a", "text": "How are you, José?", "category": "small talk"},
    "pairs": {"id": "a", "positive": "José is glad.", "negative": "José is low.", "topic": "mood"},
    "diagnostics": {
        "id": "a",
        "clean": "José won.",
        "corrupted": "José lost.",
        "reply_prefix": "José is",
        "expressive": ["glad"],
        "counterpart": ["sad"],
    },
}


def make_bad_files(bad: Path, tiny_model: Path) -> None:
    """Make all files that the mistakes name.

    Args:
        bad: where; not there yet.
        tiny_model: a directory with a model of four blocks and 256 tokens, of which damaged copies are made.
    """
    bad.mkdir()
    (bad / "a-file").write_text("A file.")
    (bad / "long.jsonl").write_text(json.dumps({"id": "long", "text": "word " * 40_000}) + "\n")
    for kind, record in GOOD.items():
        _make_texts(bad / kind, record)
    _make_models(bad, tiny_model)
    _make_functions(bad / "library")
    _make_configurations(bad / "conf")


def _make_texts(directory: Path, good: dict[str, object]) -> None:
    directory.mkdir()
    line = json.dumps(good, ensure_ascii=False) + "\n"
    last = next(key for key in ("text", "negative", "corrupted") if key in good)
    keyless = json.dumps({key: value for key, value in good.items() if key != last} | {"id": "b"})
    contents: dict[str, bytes] = {
        "empty": b"",
        "broken": f'{line}{{"id": "b",\n'.encode(),
        "list": f"{line}[1]\n".encode(),
        "keyless": f"{line}{keyless}\n".encode(),
        "twice": f"{line}{line}".encode(),
        "latin1": line.encode("latin-1"),
        "utf16": line.encode("utf-16"),
        "binary": bytes(range(256)) * 4000,
        "deep": b"[" * 100_000,
        "wide": json.dumps({"id": "a", "x" * 100_000: "y"}).encode(),
    }
    for name, content in contents.items():
        (directory / f"{name}.jsonl").write_bytes(content)
    with (directory / "huge.jsonl").open("wb") as file:
        file.truncate(3 << 30)  # without blocks on the disk
    (directory / "loop.jsonl").symlink_to("loop.jsonl")


def _make_models(bad: Path, tiny_model: Path) -> None:
    copies = ("tiny-llama", *(name for name in MODELS if name not in ("nowhere", "a-file", "empty")))
    for name in copies:
        shutil.copytree(tiny_model, bad / name)
    (bad / "empty").mkdir()
    (bad / "no-weights" / "model.safetensors").unlink()
    (bad / "no-config" / "config.json").unlink()
    weights = (tiny_model / "model.safetensors").read_bytes()
    damaged = {"cut-head": weights[:1000], "cut-end": weights[:-1000], "noise": b"\xff" * 5000, "no-bytes": b""}
    for name, content in damaged.items():
        (bad / name / "model.safetensors").write_bytes(content)
    config = json.loads((tiny_model / "config.json").read_text())
    configs = {
        "bad-config": b"{no json",
        "list-config": b"[]",
        "binary-config": b"\xff\xfe\0",
        "no-blocks": json.dumps({"model_type": "llama"}).encode(),
        "short": json.dumps(config | {"max_position_embeddings": 70}).encode(),
    }
    for name, content in configs.items():
        (bad / name / "config.json").write_bytes(content)
    (bad / "gguf").mkdir()
    liar = b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1 << 40) + b"x" * 1000
    for name, content in {"zeros": bytes(4000), "empty": b"", "liar": liar}.items():
        (bad / "gguf" / f"{name}.gguf").write_bytes(content)


def _make_functions(library: Path) -> None:
    library.mkdir()
    functions = """
number = 3

def score(replies, *, depth=1):
    return {}

def versioned(replies):
    return {}

versioned.version = "two"
"""
    (library / "bad_functions.py").write_text(functions)
    (library / "bad_raises.py").write_text("raise RuntimeError('one line\\nand another')\n")
    (library / "bad_syntax.py").write_text("def f(:\n")
    (library / "bad_leaves.py").write_text("import sys\nsys.exit(3)\n")


def _make_configurations(conf: Path) -> None:
    pairs = {
        "syntax": b"name: [a\ntarget: b\n",
        "tab": b"name: a\n\ttarget: b\n",
        "twice": b"name: a\nname: b\n",
        "list": b"- a\n- b\n",
        "unknown": b"name: a\ntargt: b\n",
        "type": b"name: [1, 2]\n",
        "latin1": "name: é\n".encode("latin-1"),
        "code": b"name: !!python/object/apply:os.system ['true']\n",
    }
    experiments = {
        "group": b"# @package _global_\ndefaults:\n  - override /pare: joy_sadness\n",
        "option": b"# @package _global_\ndefaults:\n  - override /pair: joy\n",
        "circle": b"# @package _global_\ndefaults:\n  - circle\n",
        "axis": b"# @package _global_\nhydra:\n  sweeper:\n    params:\n      layr: 1,2\n",
    }
    for group, files in (("pair", pairs), ("experiment", experiments)):
        (conf / group).mkdir(parents=True)
        for name, content in files.items():
            (conf / group / f"{name}.yaml").write_bytes(content)


def left_behind(directory: Path) -> list[str]:
    """What a command has made in its directory."""
    return sorted(os.path.relpath(path, directory) for path in directory.rglob("*"))
