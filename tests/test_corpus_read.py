"""Reading a user's files: every format, and one clear sentence for every way they can be wrong."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from atlas_jax.corpus import Document, prose, read_documents, read_sources
from atlas_jax.corpus._read import _CHUNK_CHARACTERS
from atlas_jax.errors import AtlasError


def _zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def test_every_format_and_directories(tmp_path):
    rows = [{"text": "A row.", "domain": "own"}, {"text": "No domain."}]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "a.txt").write_text("\ufeffPlain text.", "utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"Zipped text."))
    (tmp_path / "c.md").write_text("# Title\n\nA paragraph of five words stays.\n\n```\ncode\n```\n")
    (tmp_path / "d.jsonl").write_text(lines)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "g.md.gz").write_bytes(gzip.compress(b"A paragraph of five words stays."))
    (tmp_path / "h.txt.zst").write_bytes(_zstd(b"Two frames ") + _zstd(b"are one text."))
    (tmp_path / "i.jsonl.zst").write_bytes(_zstd(lines.encode()))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    table = pyarrow.table({"text": ["A cell.", None], "domain": ["own", "x"], "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "deep" / "er" / "f.parquet")
    (tmp_path / "ignored.bin").write_bytes(b"\x00\xff")
    (tmp_path / "deep" / ".hidden.txt").write_text("Hidden.")

    expected = [
        Document("Plain text.", "a", "a.txt"),
        Document("Zipped text.", "b", "b.txt.gz"),
        Document("A paragraph of five words stays.", "c", "c.md"),
        Document("A row.", "own", "d.jsonl"),
        Document("No domain.", "d", "d.jsonl"),
        Document("A cell.", "own", "deep/er/f.parquet"),
        Document("A row.", "own", "e.jsonl.gz"),
        Document("No domain.", "e", "e.jsonl.gz"),
        Document("A paragraph of five words stays.", "g", "g.md.gz"),
        Document("Two frames are one text.", "h", "h.txt.zst"),
        Document("A row.", "own", "i.jsonl.zst"),
        Document("No domain.", "i", "i.jsonl.zst"),
    ]
    assert list(read_documents([tmp_path])) == expected
    assert list(read_documents([str(tmp_path / "a.txt"), tmp_path / "d.jsonl"])) == expected[:1] + expected[3:5]


@pytest.mark.parametrize("wrap", [lambda content: content, gzip.compress, _zstd])
def test_large_compressed_files_are_whole(tmp_path, wrap):
    text = "".join(f"Line {i} of a long file, naïve and ünïcödé.\n" + "\n" * (i % 3 == 0) for i in range(60_000))
    path = tmp_path / f"long.txt{'' if wrap(b'') == b'' else '.zst' if wrap is _zstd else '.gz'}"
    path.write_bytes(wrap(text.encode()))
    assert "".join(document.text for document in read_documents([path])) == text


def test_columns_may_have_other_names(tmp_path):
    rows = {"body": ["A cell.", "B cell."], "topic": ["x", None], "text": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"body": "A row.", "topic": 3}\n{"body": "B row."}\n')
    found = list(read_documents([tmp_path], column="body", domain_column="topic"))
    assert [(d.text, d.domain) for d in found] == [("A cell.", "x"), ("B cell.", "a"), ("A row.", "3"), ("B row.", "b")]
    with pytest.raises(AtlasError, match='line 1 of .* no "text" string; it has body, topic'):
        list(read_documents([tmp_path / "b.jsonl"]))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset"])
def test_the_domain_may_be_a_field_of_a_column(tmp_path, kind):
    rows = [{"text": "A proof.", "meta": {"set": "ArXiv", "year": 1}}, {"text": "A case.", "meta": {"set": "Law"}}]
    if kind == "jsonl":
        (tmp_path / "pile.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pile.parquet")
    else:
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path)
    found = lambda column: [d.domain for d in read_sources([tmp_path], domain_column=column)]
    assert found("meta.set") == ["ArXiv", "Law"]
    assert found("meta.sets") == ["pile" if kind != "dataset" else tmp_path.name] * 2


def test_long_files_come_in_pieces_that_lose_nothing(tmp_path):
    text = ("word " * 40 + "\n") * 9 + "\n"
    whole = text * (3 * _CHUNK_CHARACTERS // len(text))
    (tmp_path / "long.txt").write_text(whole)
    pieces = [document.text for document in read_documents([tmp_path / "long.txt"])]
    assert "".join(pieces) == whole
    assert len(pieces) >= 3
    assert all(piece.endswith("\n\n") for piece in pieces)
    assert max(map(len, pieces)) < 1.01 * _CHUNK_CHARACTERS


def _parquet_of_numbers(path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), path)


def _parquet_without_text(path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "does not exist"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n ", "no usable text"),
        ("table.csv", b"a,b", "unknown kind"),
        ("f.parquet.gz", b"x", "unknown kind"),
        ("latin.txt", "Café au lait.".encode("latin-1"), "not UTF-8 .byte 0xe9.*iconv"),
        ("latin.jsonl", b'{"text": "Caf\xe9"}', "not UTF-8"),
        ("broken.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 of .* is not JSON"),
        ("list.jsonl", b"[1]\n", 'line 1 of .* no "text"'),
        ("other.jsonl", b'{"body": "x"}\n', 'line 1 of .* no "text"'),
        ("plain.txt.gz", b"not zipped at all", "not a whole gzip file"),
        ("cut.txt.gz", gzip.compress(b"some words here " * 500, mtime=0)[:-12], "not a whole gzip file"),
        ("bad.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("column.parquet", _parquet_without_text, "no column 'text'; it has body"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00", "is a binary file"),
        ("nul.jsonl.txt", b"words\x00words", "is a binary file"),
        ("numbers.parquet", _parquet_of_numbers, "column 'text' of .* holds int64, not text"),
        ("plain.txt.zst", b"not compressed at all", "not a whole zstd file"),
        ("cut.jsonl.zst", _zstd(b'{"text": "some words here"}\n' * 500)[:-12], "not a whole zstd file"),
        ("junk.txt.zst", _zstd(b"some words here") + b"junk", "not a whole zstd file"),
        ("f.parquet.zst", b"x", "unknown kind"),
        ("latin.md.zst", lambda path: path.write_bytes(_zstd("Café".encode("latin-1"))), "not UTF-8 .byte 0xe9"),
        ("code.md", b"```\nx = 1\n```\n", "no usable text"),
    ],
)
def test_bad_files_are_named_with_the_fix(tmp_path, name, content, message):
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(AtlasError, match=message) as caught:
        list(read_documents([path]))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_are_checked_before_reading(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    with pytest.raises(AtlasError, match="does not exist"):
        read_documents([tmp_path / "a.txt", tmp_path / "b.txt"])
    (tmp_path / "none").mkdir()
    with pytest.raises(AtlasError, match="holds no"):
        read_documents([tmp_path / "none"])
    with pytest.raises(AtlasError, match="no text was given"):
        read_documents([])


def test_lone_surrogates_are_made_encodable(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "Half \\ud83d a pair."}\n')
    (document,) = read_documents([tmp_path / "a.jsonl"])
    assert document.text == "Half ? a pair."


DOCSTRING = """
Solve a linear system of equations.

.. versionadded:: 1.4

Parameters
----------
a : (M, M) array_like
    Coefficient matrix of :func:`~numpy.linalg.solve`, **square**
    and of full rank.
b : array_like
    See `the manual <https://example.org/x>`_ for what is allowed here.

Args:
  tol (float): The largest residual that is still
    accepted as a solution.

The method is as follows::

    x = solve(a, b)
    Check that this is right before it is used.

It ends here with [a link](https://example.org) to it.

>>> solve(1, 2)
This is an output of the example.

- Items of a list are paragraphs of their own.
* Another item that is quite long enough.
"""


def test_prose_keeps_sentences_and_drops_the_rest():
    assert prose(DOCSTRING).split("\n\n") == [
        "Solve a linear system of equations.",
        "Coefficient matrix of numpy.linalg.solve, square and of full rank.",
        "See the manual for what is allowed here.",
        "The largest residual that is still accepted as a solution.",
        "It ends here with a link to it.",
        "Items of a list are paragraphs of their own.",
        "Another item that is quite long enough.",
    ]
