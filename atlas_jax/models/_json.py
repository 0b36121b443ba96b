"""The JSON files of a model directory."""

import json
from pathlib import Path
from typing import Any

from atlas_jax.errors import AtlasError


def read_object(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object; ``missing`` stands for a file that is not there.

    Raises:
      AtlasError: if the file is not there and nothing stands for it, cannot be read, or holds no JSON object.

    Example:
      >>> sorted(read_object(SUBJECT / "config.json"))[:2]
      ['_name_or_path', 'architectures']
    """
    if missing is not None and not path.is_file():
        return missing
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise AtlasError(f"{path} is not readable JSON ({e}); download the file again") from e
    if not isinstance(content, dict):
        raise AtlasError(f"{path} holds no JSON object; download the file again")
    return content


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as transformers writes its own, keys in their order.

    Example:
      >>> write_object(tmp / "generation_config.json", {"eos_token_id": 2})
    """
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
