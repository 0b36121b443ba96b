"""The experiments of the paper, each a function: translation quality, identification, steering, and all in one."""

from atlas_jax.experiments._atlas_info import (
    LabelQuality as LabelQuality,
    atlas_facts as atlas_facts,
    label_quality as label_quality,
)
from atlas_jax.experiments._choose import USES as USES, Chooser as Chooser, whitened_grid as whitened_grid
from atlas_jax.experiments._identify import Identified as Identified, Peak as Peak, identify as identify
from atlas_jax.experiments._preference import preference as preference
from atlas_jax.experiments._quality import (
    Quality as Quality,
    QualityRow as QualityRow,
    choose_features as choose_features,
    translation_quality as translation_quality,
)
from atlas_jax.experiments._quickstart import (
    METHODS as METHODS,
    Concept as Concept,
    explore as explore,
    measure as measure,
    quickstart as quickstart,
)
from atlas_jax.experiments._retrieval import (
    Retrieval as Retrieval,
    RetrievalRow as RetrievalRow,
    semantic_retrieval as semantic_retrieval,
)
from atlas_jax.experiments._steering import (
    Steered as Steered,
    expression_rates as expression_rates,
    steer as steer,
)
