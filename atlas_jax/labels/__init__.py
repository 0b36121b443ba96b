"""Descriptions of features: reading them, choosing one for each, making them, and searching them by meaning."""

from atlas_jax.labels._chat import (
    Answer as Answer,
    AnswerBook as AnswerBook,
    ChatEndpoint as ChatEndpoint,
    Cost as Cost,
)
from atlas_jax.labels._embedders import (
    CachedEmbedder as CachedEmbedder,
    Embedder as Embedder,
    SentenceTransformerEmbedder as SentenceTransformerEmbedder,
    StaticEmbedding as StaticEmbedding,
    open_embedder as open_embedder,
)
from atlas_jax.labels._endpoint import (
    EndpointEmbedder as EndpointEmbedder,
    Retry as Retry,
    post_json as post_json,
)
from atlas_jax.labels._explain import (
    Context as Context,
    Description as Description,
    Detection as Detection,
    description_in as description_in,
    detected_in as detected_in,
    detection_prompt as detection_prompt,
    explanation_prompt as explanation_prompt,
    read_form as read_form,
)
from atlas_jax.labels._label import Label as Label, Origin as Origin, site_of_hook as site_of_hook
from atlas_jax.labels._labels import Labels as Labels
from atlas_jax.labels._retrievers import terms as terms
from atlas_jax.labels._search import (
    Hit as Hit,
    TextIndex as TextIndex,
    hits_table as hits_table,
    open_index as open_index,
    write_index as write_index,
)
from atlas_jax.labels._statistical import (
    WordTable as WordTable,
    characteristic_words as characteristic_words,
    statistical_labels as statistical_labels,
    words_at as words_at,
    words_of as words_of,
)
from atlas_jax.labels._train_static import train_static as train_static
