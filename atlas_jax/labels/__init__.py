"""Descriptions of features: reading them, choosing one for each, making them, and searching them by meaning."""

from atlas_jax.labels._chat import Answer as Answer, AnswerBook as AnswerBook, ChatEndpoint as ChatEndpoint
from atlas_jax.labels._embedders import (
    CachedEmbedder as CachedEmbedder,
    Embedder as Embedder,
    SentenceTransformerEmbedder as SentenceTransformerEmbedder,
    open_embedder as open_embedder,
)
from atlas_jax.labels._endpoint import EndpointEmbedder as EndpointEmbedder
from atlas_jax.labels._explain import (
    Context as Context,
    description_in as description_in,
    detected_in as detected_in,
    detection_prompt as detection_prompt,
    explanation_prompt as explanation_prompt,
)
from atlas_jax.labels._http import Retry as Retry, post_json as post_json
from atlas_jax.labels._index_files import open_index as open_index, write_index as write_index
from atlas_jax.labels._label import Label as Label, Origin as Origin
from atlas_jax.labels._labels import Labels as Labels
from atlas_jax.labels._narrow import site_of_hook as site_of_hook
from atlas_jax.labels._search import Hit as Hit, TextIndex as TextIndex
from atlas_jax.labels._static import StaticEmbedding as StaticEmbedding
from atlas_jax.labels._statistical import (
    WordTable as WordTable,
    characteristic_words as characteristic_words,
    statistical_labels as statistical_labels,
    words_at as words_at,
    words_of as words_of,
)
from atlas_jax.labels._terms import terms as terms
from atlas_jax.labels._train_static import train_static as train_static
