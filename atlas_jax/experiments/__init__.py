"""The experiments of the paper, each a function: translation quality, identification, steering, and all in one."""

from typing import Any

from atlas_jax.experiments._causality import (
    CausalCell as CausalCell,
    Causality as Causality,
    CausalRow as CausalRow,
    causality as causality,
    single_features as single_features,
)
from atlas_jax.experiments._chat_judge import ChatJudge as ChatJudge
from atlas_jax.experiments._choose import (
    USES as USES,
    Chooser as Chooser,
    steering_preference as steering_preference,
    whitened_grid as whitened_grid,
)
from atlas_jax.experiments._curve import (
    Curve as Curve,
    CurvePoint as CurvePoint,
    Layers as Layers,
    quality_by_layer as quality_by_layer,
    quality_curve as quality_curve,
)
from atlas_jax.experiments._domains import (
    DomainCell as DomainCell,
    Domains as Domains,
    quality_across_domains as quality_across_domains,
)
from atlas_jax.experiments._identify import (
    ConceptQuery as ConceptQuery,
    Identified as Identified,
    Peak as Peak,
    concept_query as concept_query,
    hits_table as hits_table,
    identified_table as identified_table,
    identify as identify,
    weakness as weakness,
)
from atlas_jax.experiments._inspect import (
    RunFacts as RunFacts,
    Traced as Traced,
    run_facts as run_facts,
    token_features as token_features,
    token_projections as token_projections,
)
from atlas_jax.experiments._judges import AtlasJudge as AtlasJudge, Judge as Judge, agreement as agreement
from atlas_jax.experiments._model_judge import ModelJudge as ModelJudge
from atlas_jax.experiments._quality import (
    Measured as Measured,
    Quality as Quality,
    QualityRow as QualityRow,
    choose_features as choose_features,
    evaluate_quality as evaluate_quality,
    measured as measured,
    translation_quality as translation_quality,
)
from atlas_jax.experiments._quickstart import (
    METHODS as METHODS,
    Concept as Concept,
    quickstart as quickstart,
    run_concept as run_concept,
)
from atlas_jax.experiments._retrieval import (
    Retrieval as Retrieval,
    RetrievalRow as RetrievalRow,
    semantic_retrieval as semantic_retrieval,
)
from atlas_jax.experiments._steering import (
    Steered as Steered,
    Unit as Unit,
    expression_rates as expression_rates,
    perplexities as perplexities,
    steer as steer,
    steered_table as steered_table,
)

explore, measure = run_concept, evaluate_quality  # their names before 0.1


def __getattr__(name: str) -> Any:
    """Return names that moved to :mod:`atlas_jax.sae_lab`, until the next release."""
    if not name.startswith("_"):
        from atlas_jax import sae_lab

        if hasattr(sae_lab, name):
            return getattr(sae_lab, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
