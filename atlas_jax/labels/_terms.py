"""Texts as counts of stemmed words."""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.sparse as sp

_WORD = re.compile(r"[^\W_]+")
_FUNCTION_WORDS = (
    "a an and are as at be but by for from has have in into is it its not of on or that the their this to was were "
    "which with within"
)
_DESCRIBING_WORDS = "such particularly related various often including other especially"
_STOP = frozenset(f"{_FUNCTION_WORDS} {_DESCRIBING_WORDS}".split())
_PLURAL = (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"))
_VERB = ("ing", "ed")


def terms(text: str) -> list[str]:
    """Lower-case word stems without function words and without the words every description uses.

    Example:
      >>> terms("references to Dogs, and dog training")
      ['referenc', 'dog', 'dog', 'train']
    """
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP]


def count_matrix(bags: Sequence[Sequence[int]], width: int) -> sp.csr_matrix:
    """How often each of ``width`` terms occurs in each bag of term ids."""
    starts = np.cumsum([0, *map(len, bags)])
    columns = np.fromiter((i for bag in bags for i in bag), np.int32, starts[-1])
    counts = sp.csr_matrix((np.ones(len(columns), np.float32), columns, starts), (len(bags), width))
    counts.sum_duplicates()
    return counts


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    """A light English stem: no plural, no -ing or -ed, no final e, final y as i."""
    if len(word) <= 3:
        return word
    word = _without_verb_ending(_singular(word))
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


def _singular(word: str) -> str:
    for ending, replacement in _PLURAL:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + replacement
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _without_verb_ending(word: str) -> str:
    for ending in _VERB:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2 and re.search("[aeiouy]", stem):
            doubled = stem[-1] == stem[-2] and stem[-1] not in "lsz"
            return stem[:-1] if doubled else stem
    return word
