"""llama.cpp as the package xllamacpp brings it, by its C functions: a Llama directory as GGUF, and control vectors.

xllamacpp's own classes give neither logits nor control vectors, but its library has the functions of ``llama.h``. What
these take and give as structs of their own is passed as bytes that nothing here looks into.
"""

import ctypes
import importlib.util
import json
from pathlib import Path

import gguf
import ml_dtypes  # noqa: F401 - numpy reads bfloat16 with it
import numpy as np
from safetensors import safe_open

MISSING = importlib.util.find_spec("xllamacpp") is None
WEIGHTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


class _Options(ctypes.Structure):
    _fields_ = (("content", ctypes.c_char * 1024),)


class _Batch(ctypes.Structure):
    _fields_ = (("n", ctypes.c_int32), *((name, ctypes.c_void_p) for name in ("ids", "x", "at", "n_seq", "seq", "out")))


class _Loading(ctypes.Structure):
    """``common_control_vector_load_info``: a strength and a ``std::string``, one pointer as manylinux2014 builds it."""

    _fields_ = (("strength", ctypes.c_float), ("path", ctypes.c_char_p))


class _Loaded(ctypes.Structure):
    """``common_control_vector_data``: the width, and a ``std::vector<float>``."""

    _fields_ = (
        ("width", ctypes.c_int),
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("room", ctypes.c_void_p),
    )


class _Loadings(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p))


def write_model(directory, path):
    """Write a Llama directory as GGUF in float32, without its tokenizer."""
    config = json.loads((Path(directory) / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    with safe_open(Path(directory) / "model.safetensors", "numpy") as file:
        tensor = lambda name: file.get_tensor(f"model.{name}.weight").astype(np.float32)
        writer.add_tensor("token_embd.weight", tensor("embed_tokens"))
        writer.add_tensor("output_norm.weight", tensor("norm"))
        for i in range(config["num_hidden_layers"]):
            for theirs, name in WEIGHTS.items():
                weight = tensor(f"layers.{i}.{theirs}")
                if name in heads:  # its rotary embedding turns neighbours, that of transformers the two halves
                    weight = weight.reshape(heads[name], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
                writer.add_tensor(f"blk.{i}.{name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A model in llama.cpp."""

    def __init__(self, path, vocabulary):
        package = Path(importlib.util.find_spec("xllamacpp").origin).parent
        self.c, self.vocabulary = ctypes.CDLL(str(next(package.glob("xllamacpp*.so")))), vocabulary
        pointer = ctypes.c_void_p
        self._types("llama_model_default_params", _Options)
        self._types("llama_context_default_params", _Options)
        self._types("llama_model_load_from_file", pointer, ctypes.c_char_p, _Options)
        self._types("llama_init_from_model", pointer, pointer, _Options)
        self._types("llama_batch_get_one", _Batch, pointer, ctypes.c_int32)
        self._types("llama_decode", ctypes.c_int32, pointer, _Batch)
        self._types("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), pointer, ctypes.c_int32)
        self._types("llama_get_memory", pointer, pointer)
        self._types("llama_memory_clear", None, pointer, ctypes.c_bool)
        layers = (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)
        self._types("llama_set_adapter_cvec", ctypes.c_int32, pointer, pointer, ctypes.c_size_t, *layers)
        self.c.llama_backend_init()
        model = self.c.llama_model_load_from_file(str(path).encode(), self.c.llama_model_default_params())
        self.context = self.c.llama_init_from_model(model, self.c.llama_context_default_params())

    def _types(self, name, result, *arguments):
        function = getattr(self.c, name)
        function.restype, function.argtypes = result, arguments

    def load_control_vector(self, path):
        """Read a control vector by the function behind ``--control-vector``, and use it at every layer."""
        loaded, loading = _Loaded(), _Loading(1.0, str(path).encode())
        begin = ctypes.addressof(loading)
        end = begin + ctypes.sizeof(loading)
        load = self.c["_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"]
        load(ctypes.byref(loaded), ctypes.byref(_Loadings(begin, end, end)))
        length = (loaded.end - loaded.begin) // 4
        layers = length // loaded.width
        assert self.c.llama_set_adapter_cvec(self.context, loaded.begin, length, loaded.width, 1, layers) == 0

    def logits(self, ids):
        """Logits after ids."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        return self._further(ids)

    def _further(self, ids):
        array = (ctypes.c_int32 * len(ids))(*ids)
        assert self.c.llama_decode(self.context, self.c.llama_batch_get_one(array, len(ids))) == 0
        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, -1), (self.vocabulary,)).copy()

    def greedy(self, ids, n):
        """The n most likely next ids, one after the other."""
        new = [int(self.logits(ids).argmax())]
        while len(new) < n:
            new.append(int(self._further(new[-1:]).argmax()))
        return new
