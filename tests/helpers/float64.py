"""Definitions in float64 numpy that several test modules compare with."""

import numpy as np


def unit(a):
    """Rows of length one; rows of zeros stay."""
    norm = np.linalg.norm(a, axis=1, keepdims=True)
    return np.divide(a, norm, out=np.zeros_like(a), where=norm > 0)


def polar64(m, cut=1e-7):
    """The polar factor over the range, by a float64 SVD."""
    u, s, vt = np.linalg.svd(np.asarray(m, np.float64), full_matrices=False)
    keep = s > cut * s[0]
    return u[:, keep] @ vt[keep]


def distance(x, y):
    """Norm of the difference over the norm of ``y``."""
    return np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)
