"""The experiments of the paper, each a function: translation quality, identification, steering, and all in one."""

from atlas_jax.experiments._atlas_info import (
    LabelQuality as LabelQuality,
    atlas_facts as atlas_facts,
    label_quality as label_quality,
    mean_activation as mean_activation,
)
from atlas_jax.experiments._choose import USES as USES, Chooser as Chooser, whitened_grid as whitened_grid
from atlas_jax.experiments._evidence import Evidence as Evidence, gather_evidence as gather_evidence
from atlas_jax.experiments._held_out import HeldOut as HeldOut, Splice as Splice, held_out as held_out
from atlas_jax.experiments._identify import (
    Identified as Identified,
    Peak as Peak,
    identified_table as identified_table,
    identify as identify,
)
from atlas_jax.experiments._inspect import (
    Traced as Traced,
    token_features as token_features,
    token_projections as token_projections,
)
from atlas_jax.experiments._label import (
    Estimate as Estimate,
    estimate_requests as estimate_requests,
    label_by_chat as label_by_chat,
    label_by_words as label_by_words,
    label_facts as label_facts,
)
from atlas_jax.experiments._measure import Measured as Measured, measure as measure, measured as measured
from atlas_jax.experiments._perplexity import perplexities as perplexities
from atlas_jax.experiments._preference import preference as preference
from atlas_jax.experiments._quality import (
    Quality as Quality,
    QualityRow as QualityRow,
    choose_features as choose_features,
    translation_quality as translation_quality,
)
from atlas_jax.experiments._query import (
    ConceptQuery as ConceptQuery,
    concept_query as concept_query,
    hits_table as hits_table,
    weakness as weakness,
)
from atlas_jax.experiments._quickstart import (
    METHODS as METHODS,
    Concept as Concept,
    explore as explore,
    quickstart as quickstart,
)
from atlas_jax.experiments._retrieval import (
    Retrieval as Retrieval,
    RetrievalRow as RetrievalRow,
    semantic_retrieval as semantic_retrieval,
)
from atlas_jax.experiments._run_facts import RunFacts as RunFacts, run_facts as run_facts
from atlas_jax.experiments._sae_check import (
    Advertised as Advertised,
    SAECheck as SAECheck,
    check_sae as check_sae,
)
from atlas_jax.experiments._sae_directory import (
    finished_training as finished_training,
    plot_curves as plot_curves,
    write_result as write_result,
)
from atlas_jax.experiments._sae_settings import SAESettings as SAESettings
from atlas_jax.experiments._sae_train import (
    Curves as Curves,
    Trained as Trained,
    train_sae as train_sae,
)
from atlas_jax.experiments._sae_trials import Trial as Trial, trials as trials
from atlas_jax.experiments._steering import (
    Steered as Steered,
    Unit as Unit,
    expression_rates as expression_rates,
    steer as steer,
    steered_table as steered_table,
)
