"""The experiments of the paper, each a function: translation quality, identification, steering, and all in one."""

from typing import Any

from atlas_jax.experiments._bridge import (
    BridgeFit as BridgeFit,
    fit_bridge as fit_bridge,
    fit_bridge_to_activations as fit_bridge_to_activations,
)
from atlas_jax.experiments._bridge_layers import BridgeLayers as BridgeLayers, bridge_layers as bridge_layers
from atlas_jax.experiments._bridge_rows import BridgeRow as BridgeRow, shared_tokens as shared_tokens
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
from atlas_jax.experiments._concept_directions import (
    HOWS as HOWS,
    How as How,
    Recipe as Recipe,
    concept_direction as concept_direction,
    concept_directions as concept_directions,
    token_direction as token_direction,
)
from atlas_jax.experiments._concept_retrieval import concept_retrieval as concept_retrieval
from atlas_jax.experiments._concepts import (
    ConceptSet as ConceptSet,
    Filtered as Filtered,
    read_concepts as read_concepts,
    unwritten as unwritten,
    write_sequences as write_sequences,
)
from atlas_jax.experiments._curve import (
    Curve as Curve,
    CurvePoint as CurvePoint,
    Layers as Layers,
    quality_by_layer as quality_by_layer,
    quality_curve as quality_curve,
)
from atlas_jax.experiments._diagnosis import (
    Coverage as Coverage,
    beyond_sense as beyond_sense,
    coverage as coverage,
    diagnose as diagnose,
    diagnose_steering as diagnose_steering,
    median_perplexities as median_perplexities,
    stored_ap as stored_ap,
    weak_sites as weak_sites,
)
from atlas_jax.experiments._direction import Direction as Direction
from atlas_jax.experiments._domains import (
    DomainCell as DomainCell,
    Domains as Domains,
    quality_across_domains as quality_across_domains,
)
from atlas_jax.experiments._dose import (
    default_strengths as default_strengths,
    suggested_strength as suggested_strength,
    with_strengths as with_strengths,
)
from atlas_jax.experiments._explain import (
    Arm as Arm,
    Explained as Explained,
    explain_features as explain_features,
)
from atlas_jax.experiments._explain_features import (
    ExplainedFeature as ExplainedFeature,
    directions_of as directions_of,
    draw_features as draw_features,
    features_to_explain as features_to_explain,
    mean_unit_activation as mean_unit_activation,
)
from atlas_jax.experiments._heads import Heads as Heads, quality_by_head as quality_by_head
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
    token_concepts as token_concepts,
    token_features as token_features,
    token_projections as token_projections,
)
from atlas_jax.experiments._judges import (
    AtlasJudge as AtlasJudge,
    Judge as Judge,
    WordsJudge as WordsJudge,
    agreement as agreement,
)
from atlas_jax.experiments._model_judge import ModelJudge as ModelJudge
from atlas_jax.experiments._paper import (
    Paper as Paper,
    paper as paper,
    quality_beside_paper as quality_beside_paper,
    retrieval_beside_paper as retrieval_beside_paper,
)
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
from atlas_jax.experiments._steering_cost import Cost as Cost, steering_cost as steering_cost
from atlas_jax.experiments._steering_directions import (
    bridged_difference_of_means as bridged_difference_of_means,
    difference_of_means as difference_of_means,
    directions as directions,
    labelled_difference_of_means as labelled_difference_of_means,
)
from atlas_jax.experiments._steering_evaluation import (
    forget_evaluation as forget_evaluation,
    steering_evaluation as steering_evaluation,
)
from atlas_jax.experiments._steering_plan import (
    CONTROLS as CONTROLS,
    Cell as Cell,
    LabelledText as LabelledText,
    SteeringConcept as SteeringConcept,
    SteeringSettings as SteeringSettings,
    concept_queries as concept_queries,
    plan as plan,
    read_labelled_texts as read_labelled_texts,
    read_steering_concepts as read_steering_concepts,
)
from atlas_jax.experiments._steering_scores import (
    Score as Score,
    SteeringEvaluation as SteeringEvaluation,
    distinct as distinct,
    repetition as repetition,
)
from atlas_jax.experiments._steering_texts import file_name as file_name
from atlas_jax.experiments._token_level import (
    TokenLevel as TokenLevel,
    TokenRow as TokenRow,
    localisation as localisation,
    token_level as token_level,
)

explore, measure = run_concept, evaluate_quality  # their names before 0.1


def __getattr__(name: str) -> Any:
    """Return names that moved to :mod:`atlas_jax.sae_lab`, until the next release."""
    if not name.startswith("_"):
        from atlas_jax import sae_lab

        if hasattr(sae_lab, name):
            return getattr(sae_lab, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
