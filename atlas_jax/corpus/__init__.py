"""Sentences: reading, splitting, filtering and halving a text corpus (Appendix A.2)."""

from atlas_jax.corpus._build import build_corpus as build_corpus
from atlas_jax.corpus._corpus import Corpus as Corpus, CorpusStatistics as CorpusStatistics
from atlas_jax.corpus._files import Texts as Texts
from atlas_jax.corpus._installed import installed_documentation as installed_documentation
from atlas_jax.corpus._prose import (
    Document as Document,
    Splitter as Splitter,
    prose as prose,
    published_splitter as published_splitter,
    train_splitter as train_splitter,
)
from atlas_jax.corpus._read import read_documents as read_documents
from atlas_jax.corpus._sources import read_dataset as read_dataset, read_sources as read_sources
