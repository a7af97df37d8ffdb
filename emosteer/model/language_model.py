"""A loaded language model and everything that reading or steering it needs."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError  # what torch raises; nothing is unpickled here
from typing import TYPE_CHECKING, Any

import torch

from emosteer.config import ModelConfig
from emosteer.errors import EmosteerError
from emosteer.model.anatomy import Anatomy, dissect
from emosteer.model.dialogue import OPENING, Dialogue
from emosteer.model.source import CONTEXTS, ModelSource, converted_dir, find

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ALL_GPUS = "all"
"""A device's name for all GPUs that this process has, for a model that needs them; without GPUs the CPU."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model on one device, in evaluation mode, with its parts found."""

    name: str
    model: PreTrainedModel
    dialogue: Dialogue
    anatomy: Anatomy
    stop_tokens: frozenset[int]
    """Tokens that end a reply."""
    pad_token_id: int

    def __repr__(self) -> str:
        # A notebook shows it at every turn; the parts fill pages.
        return f"<LanguageModel {self.name}: {self.n_blocks} blocks of width {self.width}, {self.dtype} on {self.device}>"

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def n_blocks(self) -> int:
        return self.anatomy.n_blocks

    @property
    def context(self) -> int | None:
        """Tokens that fit into prompt and reply; None where the model does not say."""
        config = self.model.config.get_text_config()
        found = [getattr(config, key, None) for key in CONTEXTS]
        return next((n for n in found if isinstance(n, int) and n > 0), None)

    @property
    def width(self) -> int:
        """Size of the residual stream."""
        return int(self.model.get_input_embeddings().weight.shape[1])


def load(config: ModelConfig, source: ModelSource | None = None) -> LanguageModel:
    """Load a model by hub id or path, with the dtype, device and attention implementation of its config.

    Raises:
        EmosteerError: nothing to load, an absent device, no means to quantise, or a decoder whose blocks are not found.
    """
    source = source or find(config)
    device = choose_device(config.device)
    if config.quantization:
        _check_can_quantize(config, device)
    model, tokenizer = _from_gguf(config, source) if source.gguf_file else _from_pretrained(config, source)
    try:
        # What is quantised, by us or by who saved it, has been put where it stays.
        stays = config.device == ALL_GPUS or getattr(model, "hf_quantizer", None) is not None
        model = (model if stays else model.to(device)).eval()
    except RuntimeError as error:
        raise EmosteerError(f"model.device={config.device}: {error}") from None
    model.requires_grad_(False)
    return wrap(config.name, model, tokenizer, config)


def wrap(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig | None = None) -> LanguageModel:
    """Make a LanguageModel of a model and tokenizer that are loaded already."""
    dialogue = Dialogue(tokenizer)
    probe = torch.tensor([dialogue.prompt([OPENING])], device=model.device)
    anatomy = dissect(model, config or ModelConfig(), probe)
    stop = _stop_tokens(model, tokenizer)
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(stop)) if t is not None), 0)
    return LanguageModel(name, model, dialogue, anatomy, stop, int(pad))


def choose_device(request: str) -> torch.device:
    """The device that `request` names; `auto` is CUDA, then MPS, then CPU. Raises EmosteerError where it is absent.

    Of a model that is spread over `all` GPUs it is the one that tokens are given to.
    """
    if request in ("auto", ALL_GPUS):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(request)
    except RuntimeError:
        raise EmosteerError(f"model.device={request}: give auto, all, cpu, cuda, cuda:<n> or mps") from None
    try:
        # Only an allocation tells whether the device, and that one of several, is there.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise EmosteerError(f"model.device={request}: this machine has no such device; use model.device=auto") from None
    if device.type == "meta":
        raise EmosteerError("model.device=meta: it computes nothing; give auto, cpu, cuda, cuda:<n> or mps")
    return device


def _check_can_quantize(config: ModelConfig, device: torch.device) -> None:
    key = f"model.quantization={config.quantization}"
    if device.type != "cuda":
        raise EmosteerError(f"{key} needs a CUDA GPU, and this machine gives {device.type}; leave it out, or run where there is one")
    if find_spec("bitsandbytes") is None:
        raise EmosteerError(f"{key} needs the package bitsandbytes: pip install 'bitsandbytes>=0.46.1', or leave it out")


def _quantized(config: ModelConfig) -> dict[str, Any]:
    """Options that let transformers quantise the weights while it loads them, on the device where they stay."""
    from transformers import BitsAndBytesConfig

    dtype, device = getattr(torch, config.dtype), choose_device(config.device)
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    how = BitsAndBytesConfig(**(four_bits if config.quantization == "nf4" else {"load_in_8bit": True}))
    return {"quantization_config": how, "device_map": {"": 0 if device.index is None else device.index}}


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = [configured] if isinstance(configured, int) else list(configured or ())
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)


def _from_pretrained(config: ModelConfig, source: ModelSource) -> tuple[Any, Any]:
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    return _load_quietly(config, source.location, options | ({"revision": source.revision} if source.revision else {}))


def _load_quietly(config: ModelConfig, location: str, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    weights = dict(options, dtype=getattr(torch, config.dtype))
    if config.quantization:
        weights |= _quantized(config)
    if config.device == ALL_GPUS:
        weights["device_map"] = "auto"
    if config.attn_implementation:
        weights["attn_implementation"] = config.attn_implementation
    try:
        return AutoModelForCausalLM.from_pretrained(location, **weights), AutoTokenizer.from_pretrained(location, **options)
    except UnpicklingError:
        # transformers reads a .bin with torch's loader for tensors alone; that one's message tells how to run the code all the same.
        raise EmosteerError(
            f"model.path={location}: a .bin file there holds more than tensors, and could run anything: refused, give safetensors"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EmosteerError(f"model.path={location}: transformers cannot load it: {error}") from error


def _from_gguf(config: ModelConfig, source: ModelSource) -> tuple[Any, Any]:
    """Load a GGUF file by way of a converted copy: dequantising takes 20 seconds, loading the copy one."""
    converted = converted_dir(source)
    if os.path.exists(converted / "config.json"):  # noqa: PTH110 - Path.exists raises where the cache is closed to us
        return _load_quietly(config, str(converted), {})
    log.info("converting %s to safetensors, once", source.gguf_file)
    model, tokenizer = _load_quietly(config, source.location, {"gguf_file": source.gguf_file})
    _keep_converted(model, tokenizer, converted)
    return model, tokenizer


def _keep_converted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Publish the converted weights under `directory`; a cache that cannot be written only costs time."""
    from transformers import AutoModelForCausalLM

    # A model that came from GGUF refuses to be saved; a fresh one with its state does not.
    config = type(model.config).from_dict({k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    temporary = directory.with_name(f".converting-{directory.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        # Made by mkdir, as the umask and a shared directory's group want it: mkdtemp would lock the group out.
        temporary.mkdir(parents=True)
        fresh.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _as_the_umask_wants(temporary)
        temporary.rename(directory)
    except Exception as error:  # the writers in Rust raise a SafetensorError, or a bare Exception, where the disk is full
        if not (directory / "config.json").exists():
            log.warning("cannot keep the converted weights in %s (%s): the next load converts again", directory, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _as_the_umask_wants(directory: Path) -> None:
    """Give all files the permissions of a file that Python has made: safetensors lets nobody but the owner read its own."""
    mode = (directory / "config.json").stat().st_mode
    for path in directory.iterdir():
        path.chmod(stat.S_IMODE(mode))
