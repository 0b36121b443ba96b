"""Leading right singular vectors of a sparse matrix, the same to the bit whenever they are computed on one machine.

ARPACK is not used: where a matrix has few distinct singular values it goes on from random vectors, of a sequence that
all calls of a process share, and which vectors of equal singular values it returns depends on them.
"""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

BLOCK = 32
DIMENSION = 768
GAP = 1e-4
FRESH = 1e-10


def leading_directions(matrix: sp.csr_matrix, width: int) -> Float[np.ndarray, "columns w"]:
    """Right singular vectors of the ``width`` largest singular values, float64, largest first.

    Never more than one less than the smaller side, and fewer where the last would be one of several whose singular
    values differ by less than a ten-thousandth of the largest: any mixture of these could stand for it, so that all of
    them are left out. Computed by the Rayleigh-Ritz method in a block Krylov space with a fixed start, or in the
    whole space of the columns that are not zero where its dimension is at most 768.

    Example:
      >>> found = leading_directions(sp.csr_matrix(np.diag([3.0, 2.0, 2.0, 1.0])), 2)
      >>> np.abs(found).round(6).T.tolist()
      [[1.0, 0.0, 0.0, 0.0]]
    """
    used = np.unique(matrix.indices[matrix.data != 0])
    kept = matrix[:, used]
    space = _krylov(kept) if len(used) > DIMENSION else np.eye(len(used))
    image = kept @ space
    squares, vectors = np.linalg.eigh(image.T @ image)
    values = np.sqrt(np.maximum([*squares[::-1], 0.0], 0))[: min(width, min(matrix.shape) - 1) + 1]
    rank = max(np.flatnonzero(values[:-1] - values[1:] > GAP * values[0]) + 1, default=0)
    directions = np.zeros((matrix.shape[1], rank))
    directions[used] = space @ vectors[:, ::-1][:, :rank]
    return directions


def _krylov(matrix: sp.csr_matrix) -> Float[np.ndarray, "columns d"]:
    """An orthonormal basis of what powers of the Gram matrix make of a block of random vectors."""
    transposed, random = matrix.T.tocsr(), np.random.default_rng(0)
    basis = np.zeros((matrix.shape[1], DIMENSION))
    block = np.zeros((matrix.shape[1], BLOCK))
    for start in range(0, DIMENSION, BLOCK):
        before = basis[:, :start]
        # Without fresh vectors nothing but rounding would be left where the powers span no more than what came before.
        block = block + FRESH * random.standard_normal(block.shape)
        for _ in range(2):  # once leaves what rounding adds
            block = np.linalg.qr(block - before @ (before.T @ block))[0]
        basis[:, start : start + BLOCK] = block
        block = transposed @ (matrix @ block)
    return basis
