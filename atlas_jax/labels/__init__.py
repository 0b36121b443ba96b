"""Descriptions of features: reading them, choosing one for each, making them, and searching them by meaning."""

from atlas_jax.labels._labels import Label as Label, Labels as Labels
from atlas_jax.labels._search import Hit as Hit, TextIndex as TextIndex
from atlas_jax.labels._static import StaticEmbedding as StaticEmbedding
from atlas_jax.labels._statistical import (
    WordTable as WordTable,
    characteristic_words as characteristic_words,
    statistical_labels as statistical_labels,
    words_at as words_at,
    words_of as words_of,
)
from atlas_jax.labels._train_static import train_static as train_static
