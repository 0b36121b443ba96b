"""The corpus against a plain reference of Appendix A.2, and the properties that make sentence ids a join key."""

import itertools
import os
import random
import re
import socket
from collections import Counter
from pathlib import Path

import datasets
import nltk.data
import numpy as np
import pytest

from atlas_jax.corpus import (
    Corpus,
    Document,
    build_corpus,
    installed_documentation,
    published_splitter,
    read_documents,
    train_splitter,
)
from atlas_jax.corpus._split import quotas
from atlas_jax.errors import AtlasError

WORDS = re.findall(
    r"\w+", "matrix vector theorem signal window garden river letter colour number picture station winter"
)


@pytest.fixture(autouse=True)
def no_published_punkt(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])


def _sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 30))).capitalize() + "." for _ in range(count)]


def _documents(sentences: list[str], domains: str = "abc") -> list[Document]:
    """One sentence a paragraph, so that splitting is not in question."""
    draw = random.Random(1)
    chunks = [sentences[i : i + 7] for i in range(0, len(sentences), 7)]
    return [Document("\n\n".join(chunk), draw.choice(domains), str(i)) for i, chunk in enumerate(chunks)]


@pytest.mark.parametrize("percentiles", [(5, 95), (0, 100), (12.5, 60)])
def test_filters_equal_a_plain_reference(percentiles):
    sentences = _sentences(500)
    sentences += sentences[:60] + ["12345 67.8", "12345 67.8", "*** --- ***", "3 + 4 = 7", "Ünïcödé wörds are letters."]
    corpus = build_corpus(_documents(sentences), percentiles=percentiles)

    low, high = np.percentile([len(s) for s in sentences], percentiles)
    long_enough = [s for s in sentences if low <= len(s) <= high]
    lettered = [s for s in long_enough if any(c.isalpha() for c in s)]
    assert set(corpus.fit) | set(corpus.eval) == set(lettered)
    assert len(corpus) == len(set(lettered))
    found = corpus.statistics
    assert (found.split, found.after_length, found.after_letters, found.unique) == (
        len(sentences),
        len(long_enough),
        len(lettered),
        len(set(lettered)),
    )
    assert found.length_bounds == pytest.approx((low, high))
    assert found.mean_chars == pytest.approx(np.mean([len(s) for s in set(lettered)]))
    assert found.std_chars == pytest.approx(np.std([len(s) for s in set(lettered)]))


def test_length_bounds_are_inclusive():
    sentences = [letter + "x" * (length - 1) for letter in "abcdef" for length in range(10, 31)]
    corpus = build_corpus(_documents(sentences), percentiles=(5, 95))
    assert corpus.statistics.length_bounds == (11.0, 29.0)
    assert {len(s) for s in corpus.fit + corpus.eval} == set(range(11, 30))


def test_ids_do_not_depend_on_the_order_of_documents():
    documents = _documents(_sentences(400))
    corpus = build_corpus(documents, n_fit=60, n_eval=50)
    random.Random(5).shuffle(documents)
    again = build_corpus(iter(documents), n_fit=60, n_eval=50)
    assert again == corpus
    assert [corpus.sentence(i) for i in range(len(corpus))] == [*corpus.fit, *corpus.eval]
    assert len(corpus.domains) == len(corpus) == 110


def test_halves_share_nothing_and_a_text_never_changes_sides():
    small = build_corpus(_documents(_sentences(200)), percentiles=(0, 100))
    large = build_corpus(_documents(_sentences(200) + _sentences(600, seed=9)), percentiles=(0, 100))
    assert not set(large.fit) & set(large.eval)
    assert set(small.fit) <= set(large.fit)
    assert set(small.eval) <= set(large.eval)
    assert 0.4 < len(large.fit) / len(large) < 0.6
    other = build_corpus(_documents(_sentences(200)), percentiles=(0, 100), seed=1)
    assert set(other.fit) != set(small.fit)
    assert set(other.fit) | set(other.eval) == set(small.fit) | set(small.eval)


def test_domains_keep_their_share_and_hash_order_decides():
    sentences = _sentences(900)
    documents = [Document(s, "big" if i % 9 else "small", "x") for i, s in enumerate(sentences)]
    whole = build_corpus(documents, percentiles=(10, 100))
    cut = build_corpus(documents, percentiles=(10, 100), n_fit=90, n_eval=45)
    share = Counter(whole.domains[: len(whole.fit)])["small"] / len(whole.fit)
    assert abs(Counter(cut.domains[:90])["small"] - 90 * share) < 1
    for domain in ("big", "small"):
        kept, full = (
            [s for s, d in zip(c.fit, c.domains[: len(c.fit)], strict=True) if d == domain] for c in (cut, whole)
        )
        assert kept == full[: len(kept)]


@pytest.mark.parametrize("wanted", [0, 1, 7, 10, 23])
def test_quotas_add_up_and_are_within_one_of_the_share(wanted):
    counts = Counter(a=11, b=7, c=4, d=1)
    shares = quotas(counts, wanted, {})
    assert sum(shares.values()) == wanted
    assert all(abs(shares[name] - wanted * count / 23) < 1 and shares[name] <= count for name, count in counts.items())


def test_a_sentence_of_two_domains_belongs_to_the_first_name():
    text = "The same sentence stands in both of them."
    others = _documents(_sentences(20), "m")
    for order in itertools.permutations("zab"):
        corpus = build_corpus([Document(text, d, "x") for d in order] + others, percentiles=(0, 100))
        assert dict(zip(corpus.fit + corpus.eval, corpus.domains, strict=True))[text] == "a"


def test_punkt_is_trained_on_the_corpus_where_the_published_model_is_missing(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("opened a socket"))
    assert published_splitter() is None
    pairs = list(itertools.permutations(WORDS, 2))[:40]
    text = " ".join(f"It took approx. five of one {a} to the {b}. We saw approx. two {b} by the {a}." for a, b in pairs)
    documents = [Document(text, "sea", "log")]
    corpus = build_corpus(documents, percentiles=(0, 100))
    assert corpus.statistics.punkt == f"trained on {len(text)} characters"
    assert "It took approx. five of one matrix to the garden." in corpus.fit + corpus.eval
    assert len(corpus) == 80


def test_the_published_punkt_model_is_used_where_present(tmp_path, monkeypatch):
    model = tmp_path / "tokenizers" / "punkt_tab" / "english"
    model.mkdir(parents=True)
    for name, content in {
        "abbrev_types.txt": "dr",
        "collocations.tab": "",
        "sent_starters.txt": "",
        "ortho_context.tab": "",
    }.items():
        (model / name).write_text(content)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    splitter = published_splitter()
    assert splitter.source == "punkt_tab/english"
    assert list(splitter.split("See Dr. Smith\n  today. Then go.")) == ["See Dr. Smith today.", "Then go."]


def test_splitting_joins_lines_and_respects_blank_lines():
    splitter = train_splitter(["Nothing. Much. Here."])
    text = "A line\r\nthat goes on. The next\tone\n \t\nA heading\n\n\n  Last?  Yes!  "
    assert list(splitter.split(text)) == ["A line that goes on.", "The next one", "A heading", "Last?", "Yes!"]


def test_too_few_sentences_say_how_many_were_found_and_needed():
    documents = _documents(_sentences(40))
    found = build_corpus(documents).statistics
    left = (
        f"leaves {found.fit_available} to fit on and {found.eval_available} held out where 1,000 and 1,000 are needed"
    )
    with pytest.raises(AtlasError, match=f"{left}; give more text$"):
        build_corpus(documents, at_least=1000)
    with pytest.raises(AtlasError, match="where 1,000 and 1 are needed; give more text, or ask for fewer sentences"):
        build_corpus(documents, n_fit=1000, at_least=(1000, 1))
    with pytest.raises(AtlasError, match="no usable text"):
        build_corpus([])
    with pytest.raises(AtlasError, match="too few sentences"):
        build_corpus([Document("1 2 3.", "numbers", "x")])


@pytest.mark.parametrize(
    ("text", "found", "dropped"),
    [
        ("The very same line stands here.\n\n" * 3000, 3000, (0, 0, 2999)),
        ("\U0001f600 \U0001f389\U0001f389\n\n" * 500, 500, (0, 500, 0)),
        ("<p>" + "<td>a</td>" * 500 + "</p>\n\nOne line.\n\nOne more line.", 3, (2, 0, 0)),
        ("x = 1\n\n" * 40 + "y = 1\n\n" * 40 + "1234567890123456\n\n", 81, (1, 0, 78)),
        ("1 2 3\n\n4 5 6\n\n7 8 9\n\nab cd", 4, (0, 3, 0)),
    ],
)
def test_what_fell_at_which_filter_is_said(text, found, dropped):
    names = ("too short or too long", "without a letter", "duplicates")
    told = ", ".join(f"{count:,} {name}" for count, name in zip(dropped, names, strict=True))
    with pytest.raises(AtlasError, match=f"of {found:,} found, {told} "):
        build_corpus([Document(text, "a", "b")], at_least=1000)
    statistics = build_corpus([Document(text, "a", "b")], at_least=0).statistics
    assert statistics.dropped == dict(zip(names, dropped, strict=True))
    assert statistics.split - sum(dropped) == statistics.unique


def test_the_head_of_a_corpus():
    corpus = build_corpus(_documents(_sentences(200)))
    head = corpus.head(30, 7)
    assert (list(head.fit), list(head.eval)) == (list(corpus.fit[:30]), list(corpus.eval[:7]))
    split = len(corpus.fit)
    assert list(head.domains) == [*corpus.domains[:30], *corpus.domains[split : split + 7]]
    assert head.hash != corpus.hash
    with pytest.raises(AtlasError, match=f"eval half of this corpus has {len(corpus.eval)} sentences, not 5,000"):
        corpus.head(30, 5000)


def test_documents_and_ids_of_other_kinds_are_refused(as_for_users):
    for wrong in ("A text.", ["A text."], [{"text": "A text."}], [None]):
        with pytest.raises(AtlasError, match="built of Document.text, domain, source., not of"):
            build_corpus(wrong)
    corpus = build_corpus(_documents(_sentences(50)))
    for wrong in (1.5, "a", -1, None):
        with pytest.raises(AtlasError, match=f"no sentence {wrong}"):
            corpus.sentence(wrong)


def test_saving_and_loading(tmp_path):
    corpus = build_corpus(_documents([*_sentences(100), "Unicode separators\x85 stay – “so”."]), percentiles=(0, 100))
    corpus.save(tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus")
    assert loaded == corpus
    assert [list(part) for part in (loaded.fit, loaded.eval, loaded.domains)] == [
        list(part) for part in (corpus.fit, corpus.eval, corpus.domains)
    ]
    rows = datasets.Dataset.from_file(str(tmp_path / "corpus" / "eval.arrow"))
    assert rows["id"] == list(range(len(corpus.fit), len(corpus)))
    assert rows["text"] == list(corpus.eval)
    assert rows["domain"] == list(corpus.domains[len(corpus.fit) :])
    smaller = build_corpus(_documents(_sentences(50)))
    smaller.save(tmp_path / "corpus")
    assert Corpus.load(tmp_path / "corpus") == smaller
    assert list(loaded.fit) == list(corpus.fit)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_a_failed_save_leaves_the_old_corpus_alone(tmp_path, monkeypatch):
    corpus = build_corpus(_documents(_sentences(50)))
    corpus.save(tmp_path / "corpus")

    def full_disk(self, directory):
        (directory / "fit.arrow").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(Corpus, "_write", full_disk)
    with pytest.raises(OSError, match="no space"):
        build_corpus(_documents(_sentences(60))).save(tmp_path / "corpus")
    assert Corpus.load(tmp_path / "corpus") == corpus
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_loading_refuses_what_was_not_saved(tmp_path):
    corpus = build_corpus(_documents(_sentences(50)))
    corpus.save(tmp_path / "corpus")
    file = tmp_path / "corpus" / "fit.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"matrix", b"matrox", 1))
    with pytest.raises(AtlasError, match="not those that were saved"):
        Corpus.load(tmp_path / "corpus")
    file.write_bytes(whole.replace(b"matrix", b"matr\xff\xff", 1))
    with pytest.raises(AtlasError, match="damaged"):
        Corpus.load(tmp_path / "corpus")
    for content in (whole[: len(whole) // 2], whole[:8], b"{", b""):
        file.write_bytes(content)
        with pytest.raises(AtlasError, match="damaged|not those that were saved"):
            Corpus.load(tmp_path / "corpus")
    with pytest.raises(AtlasError, match="is not a corpus"):
        Corpus.load(tmp_path)
    with pytest.raises(AtlasError, match="exists and is not a corpus"):
        corpus.save(tmp_path)
    with pytest.raises(AtlasError, match="exists and is not a corpus"):
        build_corpus(_documents(_sentences(50)), directory=tmp_path)
    with pytest.raises(AtlasError, match="no sentence 99999"):
        corpus.sentence(99999)


@pytest.mark.parametrize("half", ["fit", "eval", "domains"])
def test_halves_are_sequences(half):
    corpus = build_corpus(_documents(_sentences(300)))
    texts = getattr(corpus, half)
    held = list(texts)
    assert [texts[i] for i in range(len(texts))] == held == [texts[np.int64(i)] for i in range(len(texts))]
    assert texts[-1] == held[-1]
    for part in (slice(3, 40), slice(None, -5), slice(50, 10, -3), slice(7, 7), slice(10_000, 20_000)):
        assert list(texts[part]) == held[part]
    assert held[5] in texts
    with pytest.raises(IndexError):
        texts[len(texts)]


def test_installed_documentation_is_clean_repeatable_and_mixed():
    documents = list(installed_documentation(max_bytes=100_000))
    assert documents == list(installed_documentation(max_bytes=100_000))
    size = sum(len(d.text.encode()) for d in documents)
    assert 100_000 <= size < 100_000 + len(documents[-1].text.encode()) + 1
    assert len({d.domain.split(".")[0] for d in documents}) >= 10
    assert not any(Path(d.source).is_absolute() or ".." in d.source for d in documents)
    paragraphs = [p for d in documents for p in d.text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert not any(re.search(r">>>|```|^\s*def |https?://", p) for p in paragraphs)
    other = next(installed_documentation(max_bytes=1, seed=1))
    assert other.source != documents[0].source


@pytest.mark.skipif("ATLAS_JAX_DATA" not in os.environ, reason="ATLAS_JAX_DATA is not set")
def test_real_text_end_to_end():
    folder = Path(os.environ["ATLAS_JAX_DATA"]) / "text"
    files = [folder / "dialogue.jsonl.gz", folder / "tinystories_cased.txt.gz"]
    corpus = build_corpus(read_documents(files), n_fit=2000, n_eval=2000)
    assert set(corpus.domains) == {"dialogue", "tinystories_cased"}
    low, high = corpus.statistics.length_bounds
    assert all(low <= len(s) <= high and "\n" not in s for s in corpus.fit + corpus.eval)
    assert len(set(corpus.fit) | set(corpus.eval)) == 4000
