"""Sentences: reading, splitting, filtering and halving a text corpus (Appendix A.2)."""

from atlas_jax.corpus._build import build_corpus as build_corpus
from atlas_jax.corpus._corpus import Corpus as Corpus, CorpusStatistics as CorpusStatistics
from atlas_jax.corpus._datasets import read_dataset as read_dataset
from atlas_jax.corpus._document import Document as Document
from atlas_jax.corpus._installed import installed_documentation as installed_documentation
from atlas_jax.corpus._prose import prose as prose
from atlas_jax.corpus._read import read_documents as read_documents
from atlas_jax.corpus._sentences import (
    Splitter as Splitter,
    published_splitter as published_splitter,
    train_splitter as train_splitter,
)
from atlas_jax.corpus._sources import read_sources as read_sources
from atlas_jax.corpus._texts import Texts as Texts
