"""The pair of small trained models that ships with the package: the directories of a subject and of a Concept Atlas.

Example:
  >>> from atlas_jax.bundled import ATLAS, SUBJECT
  >>> from atlas_jax.models import LanguageModel
  >>> LanguageModel.from_pretrained(SUBJECT).config.family, (ATLAS / "sae").is_dir()
  ('llama', True)
"""

from pathlib import Path

SUBJECT = Path(__file__).parent / "subject"
ATLAS = Path(__file__).parent / "atlas"
