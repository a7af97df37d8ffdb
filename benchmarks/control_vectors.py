"""Whether llama.cpp steers with an exported control vector as emosteer does: logits of a tiny random LLaMA under both.

    pip install llama-cpp-python==0.3.36      # builds llama.cpp: ten minutes and more
    python benchmarks/control_vectors.py

The model goes to llama.cpp as a GGUF file in float32. Its Python package has no reader of control vectors, so the file's directions
are laid out here as llama.cpp's own reader does (`common_control_vector_load`: block L at place L - 1, times the scale), and given to
`llama_set_adapter_cvec`.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_models import BLOCKS, HEADS, random_tokens, random_vector, tiny_model

import emosteer
from emosteer.model.language_model import LanguageModel
from emosteer.steering import SteeringPlan, steering_along
from emosteer.vectors import EmotionVector

VECTOR = EmotionVector(torch.stack([random_vector(b, 1.0 + b) for b in range(BLOCKS)]), torch.tensor([2.0, 3.0, 5.0, 7.0]))
LAYERS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
LAYERS |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LAYERS |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CASES = (((), 0.0), ((2,), 0.5), ((1, 3), 0.4), ((3,), -0.8))


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
    writer.add_tokenizer_model("no_vocab")
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


def directions(path: Path, scale: float, width: int) -> np.ndarray[Any, Any]:
    """A control vector's file as llama.cpp lays it out: nothing for block 0, block L at place L - 1."""
    tensors = {int(tensor.name.split(".")[1]): np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    laid_out = np.zeros((max(tensors), width), dtype=np.float32)
    for block, direction in tensors.items():
        laid_out[block - 1] += scale * direction
    return laid_out


def theirs(model_file: Path, control: np.ndarray[Any, Any] | None, tokens: tuple[int, ...], n_vocab: int) -> np.ndarray[Any, Any]:
    """llama.cpp's logits [position, vocabulary]."""
    import llama_cpp as lib

    model = lib.llama_model_load_from_file(str(model_file).encode(), lib.llama_model_default_params())
    assert model, "llama.cpp does not take the model"
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 256, 256, 256, 1, 1
    params.flash_attn_type = 0  # it multiplies in float16
    params.type_k = params.type_v = int(gguf.GGMLQuantizationType.F32)
    context = lib.llama_init_from_model(model, params)
    if control is not None:
        data = control.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert lib.llama_set_adapter_cvec(context, data, control.size, control.shape[1], 1, BLOCKS) == 0
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for at, token in enumerate(tokens):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = token, at, 1, 0, 1
    assert lib.llama_decode(context, batch) == 0
    found = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, at), (n_vocab,)).copy() for at in range(len(tokens))]
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return np.stack(found)


def ours(model: LanguageModel, layers: tuple[int, ...], coefficient: float, tokens: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Logits of emosteer [position, vocabulary], steered at every position."""
    plan = SteeringPlan([steering_along(VECTOR, layers, coefficient, scope="all")], model.device, model.dtype)
    with torch.no_grad(), plan.applied(model.anatomy):
        return np.asarray(model.model(torch.tensor([tokens])).logits[0])


def main() -> None:
    model, (tokens,) = tiny_model("llama"), random_tokens(24)
    n_vocab = model.model.config.vocab_size
    plain = ours(model, (), 0.0, tokens)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.gguf"
        write_model(model, file)
        for layers, coefficient in CASES:
            control = None
            if layers:
                emosteer.save_gguf(VECTOR, Path(directory) / "joy.gguf", layer=layers, coefficient=coefficient / 2)
                control = directions(Path(directory) / "joy.gguf", 2.0, model.width)
            mine, yours = ours(model, layers, coefficient, tokens), theirs(file, control, tokens, n_vocab)
            row = {"layers": layers, "coefficient": coefficient, "steering moves logits by": float(np.abs(mine - plain).max())}
            print(json.dumps(row | {"largest difference": float(np.abs(mine - yours).max())}), flush=True)
            np.testing.assert_allclose(yours, mine, rtol=1e-3, atol=2e-3)


if __name__ == "__main__":
    main()
