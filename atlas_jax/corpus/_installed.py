"""Text on every machine that has the project installed: documentation of Python and of the dependencies."""

import ast
import hashlib
import importlib.metadata
import os
import posixpath
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from atlas_jax.corpus._prose import Document, prose

_PROJECT = "atlas-jax"
_ROOTS = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy", "scipy", "safetensors")
_ROOTS += ("tokenizers", "huggingface-hub", "nltk", "jaxtyping", "matplotlib", "jinja2", "rich", "typer")
_SKIPPED_PARTS = {"test", "tests", "testing", "_vendor", "vendor", "_vendored", "__pycache__", "site-packages"}
_MAX_FILE_BYTES = 1_500_000
_LICENSE = re.compile(r"(licen[cs]e|copying|notice|copyright)", re.IGNORECASE)
_COMMENT = re.compile(r"^[ \t]*#[:!#]* ?", re.MULTILINE)
_STRINGS = re.compile(
    r"(?P<comment>#[^\n]*(?:\n[ \t]*#[^\n]*)*)|(?P<prefix>\b[A-Za-z]{1,2})?(?:"
    r'"""(?P<double>(?:[^"\\]|\\.|"(?!""))*)"""|'
    r"'''(?P<single>(?:[^'\\]|\\.|'(?!''))*)'''|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')",
    re.DOTALL,
)


def installed_documentation(*, max_bytes: int | None = None, seed: int = 0) -> Iterator[Document]:
    """Yield the documentation installed with Python and with the dependencies of this project, as clean prose.

    Docstrings and other triple-quoted texts of the standard library and of every distribution the project requires
    (followed recursively), the topics of Python's interactive help, package descriptions, licences and shipped
    ``.rst``, ``.md`` and ``.txt`` files. Test directories and very large files are left out; nothing is imported or
    downloaded. A paragraph that occurs in several files is yielded once. No equation of the paper.

    Args:
      max_bytes: stop once this much clean text (UTF-8 bytes) was yielded; None reads everything.
      seed: reorders the files. For one seed the order on one machine is fixed, and every prefix mixes the domains.

    Yields:
      One document per file, with ``domain`` such as ``numpy.linalg`` and ``source`` relative to the installation.

    Example:
      >>> from atlas_jax.corpus import installed_documentation
      >>> first = next(installed_documentation(max_bytes=1000))
      >>> bool(first.text) and not first.source.startswith("/")
      True
    """
    seen: set[int] = set()
    total = 0
    for relative, path in sorted(_files(), key=lambda file: _digest(f"{seed}/{file[0]}")):
        text = "\n\n".join(_unseen(prose(_raw_text(path)), seen))
        if not text:
            continue
        yield Document(text, _domain(relative), relative)
        total += len(text.encode())
        if max_bytes is not None and total >= max_bytes:
            return


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _unseen(text: str, seen: set[int]) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        if (key := _digest(paragraph)) not in seen:
            seen.add(key)
            yield paragraph


def _files() -> Iterator[tuple[str, Path]]:
    """Yield (relative name, path) of every readable file of the standard library and the requirements, in no order."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for directory, subdirectories, names in os.walk(stdlib):
        subdirectories[:] = [name for name in subdirectories if name not in _SKIPPED_PARTS]
        prefix = Path(directory).relative_to(stdlib).as_posix()
        yield from (
            (name, stdlib / name) for name in (posixpath.normpath(f"{prefix}/{n}") for n in names) if _wanted(name)
        )
    for distribution in _requirements():
        record = distribution.read_text("RECORD") or ""
        for name in (line.rsplit(",", 2)[0] for line in record.splitlines()):
            if _wanted(name):
                yield _versionless(name), Path(str(distribution.locate_file(name)))


def _requirements() -> list[importlib.metadata.Distribution]:
    """Return the installed distributions that the project requires, directly or not, without any extra."""
    try:
        queue = [_name(line) for line in importlib.metadata.requires(_PROJECT) or _ROOTS if "extra ==" not in line]
    except importlib.metadata.PackageNotFoundError:
        queue = list(_ROOTS)
    distributions: dict[str, importlib.metadata.Distribution] = {}
    visited = {_PROJECT}
    while queue:
        name = queue.pop()
        if name in visited:
            continue
        visited.add(name)
        for distribution in importlib.metadata.distributions(name=name):
            distributions[name] = distribution
            queue += [_name(line) for line in distribution.requires or () if "extra ==" not in line]
            break
    return list(distributions.values())


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else requirement


def _wanted(name: str) -> bool:
    """True if a file, by its relative POSIX name, may hold documentation."""
    *directories, base = name.split("/")
    if name.startswith("..") or not _SKIPPED_PARTS.isdisjoint(directories):
        return False
    if base.endswith(".py"):
        return not base.startswith("test_") and not base.endswith(("_pb2.py", "_test.py"))
    if directories and directories[0].endswith(".dist-info"):
        return base == "METADATA" or bool(_LICENSE.search(base))
    return base.lower().endswith((".rst", ".md", ".txt")) or bool(_LICENSE.fullmatch(base))


def _versionless(name: str) -> str:
    return re.sub(r"^([^/]+?)-[^/]*\.dist-info/", r"\1.dist-info/", name)


def _domain(name: str) -> str:
    """``scipy.stats`` for ``scipy/stats/_morestats.py``: at most two public components; licences are one domain."""
    *directories, base = name.removesuffix(".py").split("/")
    if _LICENSE.match(base):
        return "licenses"
    public = [part.removesuffix(".dist-info") for part in directories if not part.startswith("_") and part != "src"]
    return ".".join(public[:2] or [base])


def _raw_text(path: Path) -> str:
    """Return the documentation in one file: all of a text file, the triple-quoted literals of a Python file."""
    if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.parts[-2:] == ("pydoc_data", "topics.py"):
        topics = next(node for node in ast.parse(text).body if isinstance(node, ast.Assign))
        return "\n\n".join(ast.literal_eval(topics.value).values())
    if path.suffix == ".py":
        return "\n\n".join(_literals(text))
    return text.partition("\n\n")[2] if path.name == "METADATA" else text


def _literals(source: str) -> Iterator[str]:
    for match in _STRINGS.finditer(source):
        if match["comment"]:
            yield _COMMENT.sub("", match["comment"])
            continue
        body = match["double"] or match["single"]
        prefix = (match["prefix"] or "").lower()
        if body and "f" not in prefix and "b" not in prefix:
            yield _dedent(body if "r" in prefix else _unescape(body))


def _unescape(body: str) -> str:
    return body.replace("\\\n", "").replace("\\\\", "\\").replace('\\"', '"').replace("\\'", "'").replace("\\n", "\n")


def _dedent(body: str) -> str:
    """Put the first line of a docstring at the depth of the lines that follow it."""
    first, _, rest = body.partition("\n")
    depths = [len(line) - len(line.lstrip()) for line in rest.splitlines() if line.strip()]
    return " " * min(depths, default=0) + first.strip() + "\n" + rest
