"""The import of transformers: only where a model is loaded, for it takes seconds."""

import os
from types import ModuleType


def transformers() -> ModuleType:
    """The library, without its advice to install PyTorch, which nothing here needs.

    Example:
      >>> transformers().AutoConfig.__name__
      'AutoConfig'
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers
