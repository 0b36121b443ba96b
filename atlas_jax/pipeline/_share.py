"""How the processes of a run divide a block of sentences and keep in step."""

import numpy as np
from jaxtyping import Int

from atlas_jax.pipeline._plan import Batch, Block, Grid
from atlas_jax.processes import Share, gather


def share_of_places(places: Int[np.ndarray, " n"], share: Share) -> Int[np.ndarray, " m"]:
    """The sentences of a block that this process reads: every ``count``-th, from its own on.

    Example:
      >>> share_of_places(np.arange(10, 17), Share(1, 3)).tolist()
      [11, 14]
    """
    return places[share.index :: share.count]


def common_plan(block: Block, grid: Grid, share: Share) -> tuple[list[Batch], Int[np.ndarray, "b 2"]]:
    """The batches of this process's part of a block, and the sentences and tokens of each batch in all processes.

    All processes get the same shapes in the same order; where one has fewer sentences of a length than another, its
    last batches are empty. ``height`` counts the rows of one
    process.
    """
    local = grid._replace(heights=tuple(height // share.count for height in grid.heights))
    plan = local.plan(block.lengths)
    counts = np.array([sum(batch.length == length for batch in plan) for length in grid.lengths])
    missing = gather(counts).max(axis=0) - counts
    empty = np.zeros(0, np.int64)
    for length, height, count in zip(local.lengths, local.heights, missing.tolist(), strict=True):
        plan += [Batch(length, height, empty)] * count
    plan = sorted(plan, key=lambda batch: batch.length)
    tokens = sum(ids.lengths for ids in block.ids)
    sizes = np.array([(len(batch.places), tokens[batch.places].sum()) for batch in plan]).reshape(-1, 2)
    return plan, _first_of_each(share, sizes).sum(axis=0)


def _first_of_each(share: Share, x: Int[np.ndarray, "b 2"]) -> Int[np.ndarray, "s b 2"]:
    """An array of one process of every share: those whose devices hold the same rows have the same."""
    _, first = np.unique(gather(np.array([share.index])), return_index=True)
    return gather(x)[first]
