"""From activations as a model gives them to shuffled batches of rows."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Array, Bool, Float


def shuffled_rows(
    chunks: Iterable[tuple[Float[Array | np.ndarray, "*b d"], Bool[Array | np.ndarray, "*b"]]],
    *,
    batch: int,
    buffer: int,
    seed: int = 0,
) -> Iterator[Float[np.ndarray, "{batch} d"]]:
    """Batches of ``batch`` rows drawn at random from a buffer that refills itself from ``chunks``.

    Neighbouring positions of a text are alike; an SAE trains better on mixed ones. The buffer is shuffled when
    full, half of it is handed out, and it fills again. Rows left in it at the end are handed out, a last partial
    batch is dropped.

    Args:
      chunks: activations with the positions that count, such as a captured site and ``Tokens.mask``.
      batch: rows in a batch.
      buffer: rows held, at least two batches.
      seed: of the shuffling.

    Raises:
      ValueError: if the buffer is smaller than two batches.

    Example:
      >>> x = np.arange(6.0).reshape(6, 1)
      >>> sorted(float(v) for b in shuffled_rows([(x, np.ones(6, bool))], batch=2, buffer=4) for v in b[:, 0])
      [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if buffer < 2 * batch:
        raise ValueError(f"a buffer of {buffer} rows cannot mix batches of {batch}: use at least {2 * batch}")
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for acts, mask in chunks:
        acts, mask = jax.device_get((acts, mask))
        held.append(acts[mask])
        if sum(map(len, held)) >= buffer:
            rows = rng.permutation(np.concatenate(held))
            give = len(rows) // 2 // batch * batch
            yield from rows[:give].reshape(-1, batch, rows.shape[1])
            held = [rows[give:]]
    rows = rng.permutation(np.concatenate(held)) if held else np.zeros((0, 1))
    give = len(rows) // batch * batch
    yield from rows[:give].reshape(-1, batch, rows.shape[1])
