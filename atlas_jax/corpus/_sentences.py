"""Sentence splitting (Appendix A.2): NLTK Punkt, its published English model or one trained on the corpus itself."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

PUBLISHED = "punkt_tab/english"
TRAINING_CHARACTERS = 1_000_000
_PARAGRAPH_BREAK = re.compile(r"\n[ \t\r]*\n\s*")
_INNER_STOP = re.compile(r"[.!?](?=.)", re.DOTALL)


class Splitter(NamedTuple):
    """A Punkt sentence splitter and where its parameters come from.

    Attributes:
      tokenize: paragraph -> sentences.
      source: ``punkt_tab/english`` or ``trained on N characters``.
    """

    tokenize: Callable[[str], list[str]]
    source: str

    def split(self, text: str) -> Iterator[str]:
        """The sentences of a text: blank lines end a sentence, other white space becomes one space.

        Example:
          >>> splitter = train_splitter(["Rows sum to one. Columns do not."])
          >>> list(splitter.split("Rows sum\\nto one. Columns do not.\\n\\nThe end"))
          ['Rows sum to one.', 'Columns do not.', 'The end']
        """
        for paragraph in _PARAGRAPH_BREAK.split(text):
            stripped = paragraph.strip()
            for sentence in self.tokenize(stripped) if _INNER_STOP.search(stripped) else [stripped]:
                if joined := " ".join(sentence.split()):
                    yield joined


def published_splitter() -> Splitter | None:
    """The published English Punkt model where NLTK's data directories hold it; None elsewhere. Never downloads.

    Example:
      >>> splitter = published_splitter()
      >>> splitter is None or splitter.source == "punkt_tab/english"
      True
    """
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        return Splitter(PunktTokenizer("english").tokenize, PUBLISHED)
    except LookupError:
        return None


def train_splitter(texts: Iterable[str]) -> Splitter:
    """A Punkt model fitted, unsupervised, to the corpus' own text; the order of ``texts`` does not matter.

    At most the first million characters of the sorted texts are used.

    Example:
      >>> train_splitter(["One sentence. Another one."]).source
      'trained on 26 characters'
    """
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    text = "\n\n".join(sorted(texts))[:TRAINING_CHARACTERS]
    trainer = PunktTrainer()
    trainer.train(text, finalize=True)
    return Splitter(PunktSentenceTokenizer(trainer.get_params()).tokenize, f"trained on {len(text)} characters")
