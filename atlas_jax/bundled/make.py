"""Make the bundled pair from installed text alone: ``python -m atlas_jax.bundled.make --out DIRECTORY``.

Stages: ``subject`` (Llama architecture), ``foundation`` (Gemma 2 architecture), ``atlas`` (SAE and labels). A stage
whose result is already in the directory is not run again.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled._pretrain import pretrain
from atlas_jax.bundled._text import Documents, read_documents, token_rows
from atlas_jax.bundled._tokenizers import train_byte_fallback, train_byte_level
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.files import sha256
from atlas_jax.labels import Labels, WordTable, statistical_labels, words_at
from atlas_jax.models import LanguageModel, ModelConfig, Tokenizer
from atlas_jax.pipeline import SentenceStream, top_sentences
from atlas_jax.sae_lab import SAESettings, atlas_facts, train_sae
from atlas_jax.statistics import TopK

ROW = 128
CONTEXT = 512
SUBJECT = transformers.LlamaConfig(
    vocab_size=3072, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=0, eos_token_id=1,
    architectures=["LlamaForCausalLM"],
)  # fmt: skip
FOUNDATION = transformers.Gemma2Config(
    vocab_size=3072, hidden_size=160, intermediate_size=480, num_hidden_layers=5, num_attention_heads=4,
    num_key_value_heads=2, head_dim=40, max_position_embeddings=CONTEXT, query_pre_attn_scalar=40, sliding_window=64,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    architectures=["Gemma2ForCausalLM"],
)  # fmt: skip
MODELS = {
    "subject": (SUBJECT, train_byte_level, {"steps": 3000, "batch": 24, "learning_rate": 4e-3, "seed": 1}),
    "foundation": (FOUNDATION, train_byte_fallback, {"steps": 3000, "batch": 24, "learning_rate": 4e-3, "seed": 2}),
}


SAE = SAESettings("resid_post.3", 1536, 10.0, tokens=6000 * 1024, dead_after=50 * 1024, norm_limit=0.0, seed=3)
LABEL_SENTENCES = 50
MEASURED = 10000
_log = logging.getLogger("atlas_jax.bundled.make")


def make_model(name: str, out: Path, documents: Documents) -> None:
    """Train one model and its tokenizer, and record the settings."""
    hf, train_tokenizer, options = MODELS[name]
    backend = train_tokenizer(documents.train, hf.vocab_size)
    bos_id = hf.bos_token_id
    if backend.token_to_id("<s>") != bos_id:
        raise ValueError(f"the tokenizer put BOS at {backend.token_to_id('<s>')} where the config says {bos_id}")
    tokenizer = Tokenizer.from_backend(backend, "<s>")
    rows, held_out = (token_rows(tokenizer, t, ROW) for t in (documents.train, documents.held_out))
    config = ModelConfig.from_hf(hf)
    decoder, log = pretrain(config, rows, held_out, **options)
    LanguageModel(config, tokenizer, decoder, hf.to_dict()).save_pretrained(out / name, dtype="bfloat16")
    _record(out / name, {"options": options, "rows": len(rows), "log": log._asdict(), "text": describe(documents)})


def make_atlas(out: Path) -> None:
    """Train the SAE on the foundation's residuals, label its features, and put the atlas together."""
    foundation = LanguageModel.from_pretrained(out / "foundation")
    corpus = build_corpus(installed_documentation())
    trained = train_sae(foundation, corpus, SAE, name="foundation")
    unlabelled = ConceptAtlas.from_parts(foundation, trained.sae, trained.sae.config.site, Labels.empty(SAE.features))
    top = top_sentences(SentenceStream.from_texts([unlabelled], corpus.fit), top_k=LABEL_SENTENCES)[unlabelled.site]
    labels = statistical_labels(WordTable.from_texts(corpus.fit), peak_words(top, corpus.fit, foundation.tokenizer))
    atlas = dataclasses.replace(unlabelled, labels=labels)
    facts = atlas_facts(atlas, corpus.eval[:MEASURED])
    _log.info(f"atlas: {facts}")
    with tempfile.TemporaryDirectory(dir=out) as directory:
        new = Path(directory) / "atlas"
        atlas.save_pretrained(new, {"measured": facts}, dtype="bfloat16")
        record = {"options": SAE.to_dict(), "curves": trained.curves._asdict(), "measured": facts}
        _record(new / "sae", record | {"corpus": corpus.hash, "corpus_statistics": corpus.statistics._asdict()})
        shutil.copy(out / "foundation" / "training.json", new / "model")
        new.rename(out / "atlas")


def peak_words(top: TopK, texts: Sequence[str], tokenizer: Tokenizer) -> list[list[set[str]]]:
    """Return for every feature the word at the peak of each of its strongest sentences."""
    index, position = np.asarray(top.index), np.asarray(top.position)
    return [
        [words_at(texts[i], tokenizer.span(texts[i], p)[1] - 1) for i, p in zip(*row, strict=True) if i >= 0]
        for row in zip(index.tolist(), position.tolist(), strict=True)
    ]


def describe(documents: Documents) -> dict[str, Any]:
    """Describe the training text: sizes, a hash, and the packages that were installed."""
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {
        "source": "docstrings, comments and documentation files of the Python standard library and installed packages",
        "characters": documents.characters,
        "sha256": documents.sha256,
        "python": sys.version.split()[0],
        "packages": dict(sorted(packages.items())),
    }


def _record(directory: Path, content: dict[str, Any]) -> None:
    files = {p.name: sha256(p) for p in sorted(directory.iterdir()) if p.suffix in (".safetensors", ".npz")}
    (directory / "training.json").write_text(json.dumps(content | {"sha256": files}, indent=1))


def main() -> None:
    """Run the stages that have not run yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("atlas_jax").setLevel(logging.INFO)
    missing = [name for name in (*MODELS, "atlas") if not (arguments.out / name).exists()]
    documents = read_documents() if set(missing) & set(MODELS) else None
    for name in missing:
        if documents is not None and name in MODELS:
            make_model(name, arguments.out, documents)
        else:
            make_atlas(arguments.out)


if __name__ == "__main__":
    main()
