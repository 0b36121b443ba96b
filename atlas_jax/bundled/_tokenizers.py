"""Two tokenizers of different kinds, as the two model families have."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BOS, EOS = "<s>", "</s>"


def train_byte_level(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with digits in groups of three, as in Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _finish(tokenizer, texts, trainer)


def train_byte_fallback(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train BPE over characters with spaces made visible and bytes for rare characters, as in Gemma."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", EOS, BOS, "<unk>", *(f"<0x{b:02X}>" for b in range(256))],
        limit_alphabet=200,
        show_progress=False,
    )
    return _finish(tokenizer, texts, trainer)


def _finish(tokenizer: Tokenizer, texts: Iterable[str], trainer: trainers.BpeTrainer) -> Tokenizer:
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return tokenizer


def _regex(pattern: str):  # noqa: ANN202
    from tokenizers import Regex

    return Regex(pattern)
