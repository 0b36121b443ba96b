"""Reading a user's files: every format, and one clear sentence for every way they can be wrong."""

import gzip
import json
from collections import Counter

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
    with pytest.raises(AtlasError, match='no line of .*b.jsonl. has "text"; name the column of the text: body, topic'):
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
        ("latin.txt", "Café au lait.".encode("latin-1"), "not UTF-8 .byte 0xe9: .*such as latin-1 .* --encoding"),
        ("latin.jsonl", b'{"text": "Caf\xe9"}', "not UTF-8"),
        ("broken.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 of .* is not JSON"),
        ("list.jsonl", b"[1]\n", "line 1 of .* is not an object such as"),
        ("number.jsonl", b'{"text": "x"}\n\n{"text": 5}\n', '"text" in line 3 of .* is a number, not text'),
        ("float.jsonl", b'{"text": 0.5}\n', '"text" in line 1 of .* is a number, not text'),
        ("texts.jsonl", b'{"text": ["x"]}\n', '"text" in line 1 of .* is a list, not text'),
        ("false.jsonl", b'{"text": false}\n', '"text" in line 1 of .* is true or false, not text'),
        ("object.jsonl", b'{"text": {}}\n', '"text" in line 1 of .* is an object, not text'),
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000, "line 1 of .* is not JSON"),
        ("long.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1 of .* is not JSON"),
        ("other.jsonl", b'{"body": "x"}\n', 'no line of .* has "text"; name the column of the text: body'),
        ("nulls.jsonl", b'{"text": null}\n{}\n', "no usable text"),
        ("utf16le.txt", "Plain words.".encode("utf-16-le"), "UTF-16 without a byte order mark.*--encoding"),
        ("utf16be.jsonl", '{"text": "Wörter"}'.encode("utf-16-be"), "UTF-16 without a byte order mark.*--encoding"),
        ("cut.txt", "Words".encode("utf-16")[:-1], "not UTF-16 .byte .*truncated data"),
        ("latin.jsonl.gz", gzip.compress('{"text": "Café"}'.encode("latin-1"), mtime=0), "not UTF-8 .byte 0xe9"),
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


TEXT = "Café au lait.\r\nA naïve rôle.\r\n\r\nThe end.\r\n"
UNIX = TEXT.replace("\r", "")


@pytest.mark.parametrize("wrap", [lambda content: content, gzip.compress, _zstd], ids=["plain", "gz", "zst"])
@pytest.mark.parametrize("kind", ["txt", "md", "jsonl"])
@pytest.mark.parametrize(
    ("stored", "encoding"),
    [("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("utf-16-be", None), ("utf-32", None)]
    + [("latin-1", "latin-1"), ("cp1252", "cp1252"), ("utf-16-le", "utf-16-le"), ("utf-16", "latin-1")],
)
def test_every_encoding_is_read_right_or_refused(tmp_path, stored, encoding, kind, wrap):
    """With a byte order mark the file says it itself, whatever the caller says of the others."""
    told = "\ufeff" if stored == "utf-16-be" else ""
    content = (
        "\r\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in (UNIX, UNIX)) if kind == "jsonl" else TEXT
    )
    path = tmp_path / f"a.{kind}{ {gzip.compress: '.gz', _zstd: '.zst'}.get(wrap, '') }"
    path.write_bytes(wrap((told + content).encode(stored)))
    found = [document.text for document in read_documents(tmp_path, encoding=encoding)]
    expected = {"txt": [UNIX], "jsonl": [UNIX, UNIX], "md": ["Café au lait. A naïve rôle."]}[kind]
    assert found == expected
    assert "\r" not in "".join(found)
    assert "\ufeff" not in "".join(found)


def test_marks_inside_are_left_out(tmp_path):
    """As files put one after the other have them, and exports of spreadsheets."""
    (tmp_path / "a.txt").write_text("\ufeffOne.\n\ufeffTwo.\n", "utf-8")
    (tmp_path / "b.jsonl").write_text(
        '\ufeff{"text": "\ufeffOne."}\n\ufeff{"text": "\ufeff", "domain": "x"}\n', "utf-8"
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": ["\ufeffTwo.", "\ufeff "]}), tmp_path / "c.parquet")
    skipped = Counter()
    assert [d.text for d in read_documents(tmp_path, skipped=skipped)] == ["One.\nTwo.\n", "One.", "Two."]
    assert skipped == {"b.jsonl": 1, "c.parquet": 1}


def test_records_without_text_are_skipped_and_counted(tmp_path):
    rows = [{"text": "One."}, {"text": None}, {"other": "x"}, {"text": " "}, {"text": "Two."}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "code.md").write_text("```\nx = 1\n```\n")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for source, expected in {
        tmp_path / "a.jsonl": {"a.jsonl": 3},
        tmp_path / "b.parquet": {"b.parquet": 3},
        tmp_path / "saved": {"saved": 3},
        tmp_path: {"a.jsonl": 3, "b.parquet": 3, "empty.txt": 1, "code.md": 1},
    }.items():
        skipped = Counter()
        found = [document.text for document in read_sources(source, skipped=skipped)]
        assert found == ["One.", "Two."] * (2 if source == tmp_path else 1)
        assert skipped == expected


def test_a_column_that_no_record_has_is_not_looked_for_long(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines('{"body": "x"}\n' for _ in range(2000))
        file.write("not JSON\n")
    with pytest.raises(AtlasError, match='no line of .* has "text"; .*: body'):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13"])
def test_unknown_encodings_are_refused_before_reading(tmp_path, encoding):
    with pytest.raises(AtlasError, match=f"unknown encoding '{encoding}'; .*latin-1"):
        read_documents(tmp_path / "gone", encoding=encoding)


def test_text_of_a_parquet_file_that_is_not_utf8(tmp_path):
    broken = pyarrow.array([b"Caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    with pytest.raises(AtlasError, match="a.parquet' is not a readable Parquet file .*; write it again"):
        list(read_documents(tmp_path))


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
    (tmp_path / "a.jsonl").write_text('{"text": "Half \\ud83d a pair.", "domain": "\\ud83d"}\n')
    (document,) = read_documents(str(tmp_path / "a.jsonl"))
    assert (document.text, document.domain) == ("Half ? a pair.", "?")


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
