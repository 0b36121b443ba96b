"""The concept sequences of ``evaluate retrieval --concepts``, written by a chat model where there are none."""

from pathlib import Path
from typing import TYPE_CHECKING

from atlas_jax import interrupts
from atlas_jax.cli._console import note, progress_bars
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.experiments import ConceptSet
    from atlas_jax.pipeline import Alignment

TOKENS_A_SEQUENCE = 30  # for the estimate


def given_concepts(
    alignment: "Alignment", path: Path, count: int, chat_model: str | None, base_url: str | None
) -> "list[ConceptSet]":
    """The concepts of a file, with sequences.

    Raises:
      AtlasError: as :func:`experiments.read_concepts` and :func:`experiments.write_sequences`, or for descriptions
        without a chat model.
    """
    from atlas_jax import experiments
    from atlas_jax.labels import AnswerBook, ChatEndpoint

    concepts = experiments.read_concepts(path, alignment.subject.widths)
    missing = sum(not c.sequences for c in concepts)
    if not missing:
        return concepts
    if chat_model is None:
        raise AtlasError(
            f"{missing} of the {len(concepts)} concepts of {path} have a description and no sequences; name a chat "
            "model to write them with --chat-model"
        )
    endpoint = ChatEndpoint.connect(chat_model, base_url=base_url)
    book = AnswerBook(path.with_suffix(".answers.jsonl"))
    interrupts.say_at_end(lambda: "interrupted; give the same command again, which asks no question twice")
    cost = book.cost(experiments.unwritten(concepts, endpoint, count), TOKENS_A_SEQUENCE * count).facts()
    note(", ".join(f"{name} {value:,}" for name, value in cost.items()))
    with progress_bars("concepts") as progress:
        concepts = experiments.write_sequences(concepts, endpoint, book, count=count, progress=progress)
    note(f"tokens spent {sum(book.spent):,}, answers that cannot be read {book.unread}; kept in {book.path}")
    return concepts
