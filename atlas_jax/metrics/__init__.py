"""Scores of the paper's tables: detection (AUROC, AP), retrieval (Eqs. 10, 11), steering (Eq. 5), intervals."""

from atlas_jax.metrics._bootstrap import Interval as Interval, bootstrap_mean as bootstrap_mean
from atlas_jax.metrics._detection import (
    Detection as Detection,
    auroc as auroc,
    average_precision as average_precision,
    detection as detection,
)
from atlas_jax.metrics._faithfulness import faithfulness as faithfulness
from atlas_jax.metrics._neighbours import mutual_neighbours as mutual_neighbours
from atlas_jax.metrics._retrieval import (
    predicted_probability as predicted_probability,
    reciprocal_rank as reciprocal_rank,
)
