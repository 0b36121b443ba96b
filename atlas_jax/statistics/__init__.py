"""Streaming sufficient statistics: one pass serves every method and all sites."""

from atlas_jax.statistics._lens import (
    lens_init as lens_init,
    lens_update as lens_update,
    selected_samples as selected_samples,
)
from atlas_jax.statistics._mask import outlying_features as outlying_features, without_features as without_features
from atlas_jax.statistics._norms import (
    NormSums as NormSums,
    TokenNorms as TokenNorms,
    add_norms as add_norms,
    merge_norms as merge_norms,
)
from atlas_jax.statistics._read import (
    GramMoments as GramMoments,
    centred_cross as centred_cross,
    check_rows as check_rows,
    cross_product as cross_product,
    gram_matrix as gram_matrix,
    gram_moments as gram_moments,
    has_double as has_double,
    on_one_device as on_one_device,
    solver_device as solver_device,
)
from atlas_jax.statistics._types import (
    NEEDS as NEEDS,
    Lens as Lens,
    Moments as Moments,
    PassStatistics as PassStatistics,
    Statistics as Statistics,
    TopK as TopK,
    layout as layout,
    on_mesh as on_mesh,
)
from atlas_jax.statistics._update import (
    merge as merge,
    merge_pass as merge_pass,
    update as update,
    update_pass as update_pass,
)
