"""From statistics to translations: every site by every method."""

from collections.abc import Sequence
from typing import Any

from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._pass import Pass
from atlas_jax.pipeline._stream import Fitted, fit_lenses
from atlas_jax.progress import Progress
from atlas_jax.translation import Translation
from atlas_jax.translators import METHODS
from atlas_jax.types import Site


def solve(
    stream: Pass,
    fitted: Fitted,
    methods: Sequence[str],
    *,
    metadata: dict[str, Any] | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> dict[tuple[Site, str], Translation]:
    """Solve every method at every site, with SemanticLens' second pass where it is asked for.

    Args:
      stream: the pass the statistics are of.
      fitted: its statistics.
      methods: names in :data:`atlas_jax.translators.METHODS`.
      metadata: plain values to keep with every translation.
      progress: called after every batch of the second pass.
      checkpoints: where the state of the second pass is saved now and then.

    Raises:
      AtlasError: for statistics that lack what a method needs; or as :func:`atlas_jax.pipeline.fold`.
    """
    lenses = {}
    if any(METHODS[m].second_pass for m in methods):
        lenses = fit_lenses(stream, fitted.statistics, progress=progress, checkpoints=checkpoints)
    found = {}
    for site in fitted.statistics.sites:
        statistics = fitted.statistics.statistics(site)._replace(lens=lenses.get(site))
        for method in methods:
            options = {"site": site, "metadata": metadata, "token_norm": fitted.token_norm(site)}
            found[site, method] = Translation.from_statistics(statistics, method, **options)
    return found
