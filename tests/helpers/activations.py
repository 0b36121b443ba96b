"""Activations of two models that are hard to translate between, and their statistics in float64."""

import jax.numpy as jnp
import numpy as np

from atlas_jax.statistics import NEEDS, Statistics, lens_init
from helpers.float64 import unit

N = 800


def draw(rng, d_s, d_c, rank=30, dead=True):
    """Means far from zero, sparse atlas features, a dead neuron and a dead atlas feature."""
    latent = rng.normal(size=(N, rank))
    a_s = latent @ rng.normal(size=(rank, d_s)) / 3 + rng.normal(size=d_s)
    a_c = np.maximum(latent @ rng.normal(size=(rank, d_c)) / 3, 0) + 0.1
    if dead:
        a_s[:, 1], a_c[:, 2] = 0, 0
    return a_s.astype(np.float32), a_c.astype(np.float32)


def statistics_of(a_s, a_c, needs=tuple(NEEDS)):
    """Statistics built in numpy from all the rows, so that only translators are under test."""
    split = lambda x: (jnp.asarray(x, jnp.float32), jnp.asarray(x - np.asarray(x, np.float32), jnp.float32))
    empty = Statistics.init(needs, a_s.shape[1], a_c.shape[1], top_k=5)
    s, c = a_s.astype(np.float64), a_c.astype(np.float64)
    views = {"raw": (s, c), "unit": (unit(s), unit(c))}

    def side(like, which):
        parts = {}
        for view, rows in views.items():
            if (moments := getattr(like, view)) is None:
                parts[view] = (None, None)
                continue
            x = rows[which] - rows[which].mean(0)
            values = (rows[which].mean(0), (x**2).sum(0), None if moments.gram is None else x.T @ x)
            pairs = [(None, None) if v is None else split(v) for v in values]
            parts[view] = tuple(type(moments)(*half) for half in zip(*pairs, strict=True))
        return tuple(type(like)(parts["raw"][half], parts["unit"][half]) for half in (0, 1))

    def cross(view):
        x, y = (rows - rows.mean(0) for rows in views[view])
        return (None, None) if getattr(empty.cross, view) is None else split(x.T @ y)

    crosses = [type(empty.cross)(*half) for half in zip(cross("raw"), cross("unit"), strict=True)]
    weight, atlas, subject = split(np.float64(len(s))), side(empty.atlas, 1), side(empty.subject, 0)
    low = (weight[1], atlas[1], subject[1], crosses[1])
    stats = empty._replace(weight=weight[0], atlas=atlas[0], subject=subject[0], cross=crosses[0], compensation=low)
    return with_top(stats, a_s, a_c) if "top_k" in needs else stats


def with_top(stats, a_s, a_c):
    rows = np.argsort(-a_s, axis=0, kind="stable")[:5].T
    top = stats.top._replace(values=jnp.asarray(np.take_along_axis(a_s.T, rows, 1)), index=jnp.asarray(rows, jnp.int32))
    total = jnp.asarray(a_c[rows].sum(axis=1), jnp.float32)
    return stats._replace(
        top=top, lens=lens_init(top, a_c.shape[1])._replace(total=total, found=jnp.full(len(rows), 5))
    )
