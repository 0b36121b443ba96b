"""Shuffled batches of a stream: every row at most once, well mixed, and the same again from any cursor."""

import itertools

import numpy as np
import pytest

from atlas_jax.sae import mixed_batches

OPTIONS = {"batch": 8, "buffer": 200, "seed": 3}


@pytest.fixture(scope="module")
def chunks():
    """3000 numbered rows in ragged arrays, some of them empty, a few to a chunk."""
    cuts = np.sort(np.random.default_rng(7).integers(0, 3000, 60))
    arrays = np.split(np.arange(3000.0)[:, None], cuts)
    return lambda i: arrays[4 * i : 4 * i + 4]


def test_every_row_is_handed_out_at_most_once_and_nearly_all_are(chunks):
    rows = np.concatenate([b for b, _ in mixed_batches(chunks, **OPTIONS)])
    assert len(np.unique(rows)) == len(rows) >= 3000 - 200


def test_every_cursor_goes_on_with_the_same_batches(chunks):
    whole = list(mixed_batches(chunks, **OPTIONS))
    for i in range(0, len(whole) - 1, 11):
        again = [b for b, _ in mixed_batches(chunks, start=whole[i][1], **OPTIONS)]
        np.testing.assert_array_equal(again, [b for b, _ in whole[i + 1 :]])


def test_going_on_computes_no_chunk_before_the_last_two_segments(chunks):
    asked = []

    def counted(i):
        asked.append(i)
        return chunks(i)

    cursor = list(mixed_batches(chunks, **OPTIONS))[250][1]
    next(mixed_batches(counted, start=cursor, **OPTIONS))
    assert 5 < min(asked) == cursor.chunk


def test_batches_mix_distant_rows_and_a_seed_decides_how(chunks):
    first, *_ = batches = [b[:, 0] for b, _ in mixed_batches(chunks, **OPTIONS)]
    spread = np.mean([np.ptp(b) for b in batches])
    assert spread > 100
    assert np.median(np.abs(np.diff(np.concatenate(batches)))) > 20
    other = next(mixed_batches(chunks, **OPTIONS | {"seed": 4}))[0][:, 0]
    assert not np.array_equal(first, other)


def test_an_endless_stream_is_read_lazily():
    chunks = lambda i: [np.full((50, 1), float(i))]
    taken = [b for b, _ in itertools.islice(mixed_batches(chunks, batch=4, buffer=64), 30)]
    assert max(b.max() for b in taken) < 6


def test_a_buffer_too_small_to_mix_is_refused(chunks):
    with pytest.raises(ValueError, match="at least 32"):
        next(mixed_batches(chunks, batch=8, buffer=31))
