"""Which layers of two models a bridge should join: every pair, from one pass."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._bridge_solve import NEEDS, OUTLIER, Halves, check_enough
from atlas_jax.pipeline import SentenceStream, encode_batch, run_stream
from atlas_jax.progress import Progress
from atlas_jax.statistics import PassStatistics, update_pass
from atlas_jax.subject import Subject
from atlas_jax.table import Column, Table
from atlas_jax.translators import PENALTIES, ridge_paths
from atlas_jax.types import Site, Tokens

MOST_BYTES = 2**34  # of statistics


class BridgeLayers(NamedTuple):
    """How much of every target site a ridge bridge from every source site explains.

    Attributes:
      source: sites of the source.
      target: sites of the target.
      r2: share of the held-out variance about the mean that is explained ``[source, target]``, all dimensions together.
      rows: sentences that were fitted to.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import BridgeLayers
      >>> sites = Site("resid_post", 0), Site("resid_post", 1)
      >>> BridgeLayers(sites, sites, np.array([[0.9, 0.4], [0.5, 0.8]]), 1000).best
      (Site('resid_post.0'), Site('resid_post.0'))
    """

    source: tuple[Site, ...]
    target: tuple[Site, ...]
    r2: Float[np.ndarray, "s t"]
    rows: int

    @property
    def best(self) -> tuple[Site, Site]:
        """The pair of source and target of which most is explained."""
        i, j = np.unravel_index(np.argmax(self.r2), self.r2.shape)
        return self.source[i], self.target[j]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        names = {"source": list(map(str, self.source)), "target": list(map(str, self.target))}
        return names | {"r2": self.r2.tolist(), "rows": self.rows, "best": list(map(str, self.best))}

    def table(self) -> Table:
        """Tabulate R², a row a source and a column a target, the best of each row's targets standing out."""
        columns = Column("from"), *(Column(str(site), ".3f") for site in self.target)
        rows = [(str(site), *own) for site, own in zip(self.source, self.r2.tolist(), strict=True)]
        caption = (
            f"of the held-out variance about the mean, all dimensions together; {self.rows} sentences to fit on; most "
            f"is explained from {self.best[0]} to {self.best[1]}"
        )
        return Table("R² of ridge bridges", columns, rows, caption)

    def plot(self) -> Figure:
        """Draw the same as a heatmap."""
        figure = Figure(figsize=(2 + 0.7 * len(self.target), 1.5 + 0.5 * len(self.source)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(self.r2, vmin=min(0.0, float(self.r2.min())), vmax=1.0, aspect="auto", cmap="Blues")
        for (i, j), value in np.ndenumerate(self.r2):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
        axes.set_xticks(range(len(self.target)), list(map(str, self.target)), rotation=45, ha="right")
        axes.set_yticks(range(len(self.source)), list(map(str, self.source)))
        axes.set(xlabel="target", ylabel="source", title="held-out R² of ridge bridges")
        figure.colorbar(image)
        return figure


def bridge_layers(
    source: Subject,
    target: Subject,
    texts: Sequence[str],
    held_out: Sequence[str],
    *,
    outlier: float | None = OUTLIER,
    penalties: Sequence[float] = PENALTIES,
    max_length: int = 128,
    token_budget: int = 4096,
    most_bytes: int = MOST_BYTES,
    progress: Progress | None = None,
) -> BridgeLayers:
    """Fit a ridge bridge, pooled over sentences, from every site of one model to every site of another.

    Each half of the text is read once by each model. Every pair has statistics of its own, and each source site one
    Gram matrix, which is diagonalised once.

    Args:
      source: a model at some sites.
      target: another at some sites.
      texts: sentences to fit on.
      held_out: other sentences.
      outlier: as in :func:`fit_bridge`.
      penalties: as there.
      max_length: tokens at which sentences are cut.
      token_budget: tokens of a batch, for each model.
      most_bytes: that the statistics may take.
      progress: called after every batch.

    Raises:
      AtlasError: if the statistics of all pairs take more, or there are no more sentences than a source site is wide.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.experiments import bridge_layers
      >>> sites = ["resid_post.1", "resid_post.2"]
      >>> load = lambda path: Subject.from_model(LanguageModel.from_pretrained(path), sites, "mean")
      >>> bridge_layers(load(SUBJECT), load(ATLAS / "model"), texts, held_out).best         # doctest: +SKIP
      (Site('resid_post.1'), Site('resid_post.1'))
    """
    sides = [dataclasses.replace(side, outlier=outlier) for side in (target, source)]
    check_enough(len(texts), max(source.widths.values()), "give more text (--sentences, --text)")
    states = [_empty(source, target, most_bytes) for _ in range(2)]
    for i, (stage, own) in enumerate((("fit", texts), ("held out", held_out))):
        stream = SentenceStream.from_texts(sides, own, max_length=max_length, token_budget=token_budget)
        step = partial(_step, source=sides[1], target=sides[0])
        states[i] = run_stream(stream, step, states[i], stage=stage, progress=progress)
    r2 = np.zeros((len(source.sites), len(target.sites)))
    for i, site in enumerate(source.sites):
        both = [{t: state[site].statistics(t) for t in target.sites} for state in states]
        halves = {t: Halves.from_statistics(both[0][t], both[1][t], outlier) for t in target.sites}
        fit, other = ({t: h[which] for t, h in halves.items()} for which in (0, 1))
        paths = ridge_paths(fit, other, penalties)
        r2[i] = [max(paths[t].r2) for t in target.sites]
    return BridgeLayers(source.sites, target.sites, r2, len(texts))


State = dict[Site, PassStatistics]


def _empty(source: Subject, target: Subject, most: int) -> State:
    """Statistics of every pair, by source site."""
    make = lambda d: PassStatistics.init(NEEDS, target.widths, d)
    shapes = jax.eval_shape(lambda: {site: make(d) for site, d in source.widths.items()})
    size = 2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    if size > most:
        pairs = f"{len(source.sites)} x {len(target.sites)} sites"
        raise AtlasError(
            f"the statistics of {pairs} take {size / 1e9:.1f} GB, and at most {most / 1e9:.1f} GB are allowed; "
            "name fewer sites (--source-site, --target-site)"
        )
    return {site: make(d) for site, d in source.widths.items()}


def _step(state: State, tokens_t: Tokens, tokens_s: Tokens, *, source: Subject, target: Subject) -> State:
    return _add(state, encode_batch(target, tokens_t), encode_batch(source, tokens_s), tokens_t.index)


@partial(jax.jit, donate_argnums=0)
def _add(
    state: State, y: dict[Site, Float[Array, "b _"]], x: dict[Site, Float[Array, "b _"]], index: Int[Array, " b"]
) -> State:
    weight = (index >= 0).astype("float32")
    return {site: update_pass(own, y, x[site], weight, index) for site, own in state.items()}
