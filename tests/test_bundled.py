"""The bundled models are ordinary checkpoints: transformers loads them and computes and continues the same."""

import numpy as np
import pytest
import torch
import transformers

from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.models import LanguageModel, generate, run

TEXTS = ["Returns the mean of the array along the given axis.", "This class holds information", "A file-like object"]


@pytest.mark.parametrize("path", [SUBJECT, ATLAS / "model"], ids=["subject", "foundation"])
def test_transformers_agrees_on_trained_weights(path):
    ours = LanguageModel.from_pretrained(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer(TEXTS)["input_ids"] == ours.tokenizer.encode(TEXTS)
    for text in TEXTS:
        tokens = ours.tokenize([text])
        ids = torch.tensor(np.asarray(tokens.ids)).long()
        with torch.no_grad():
            expected = theirs(ids).logits.numpy()
            continued = theirs.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :].tolist()
        logits = np.asarray(run(ours, tokens).logits)
        assert np.linalg.norm(logits - expected) <= 1e-4 * np.linalg.norm(expected)
        assert generate(ours, [text], max_new_tokens=32).ids[0].tolist() == continued
