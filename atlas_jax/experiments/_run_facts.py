"""What a run directory holds, told from its files alone: no model is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atlas_jax.artifacts import RUN, read_json
from atlas_jax.errors import AtlasError
from atlas_jax.translation import RECORD
from atlas_jax.types import Site


class RunFacts(NamedTuple):
    """A run in plain values.

    Attributes:
      facts: names and values: models, corpus, settings, versions, sizes.
      translations: a row a site and method: shape, the site's mean token norm, whether the certificate is within its
        tolerances (None where it judges nothing), bytes.
    """

    facts: dict[str, Any]
    translations: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return self._asdict()


def run_facts(directory: str | Path) -> RunFacts:
    """Describe a run.

    Raises:
      AtlasError: if it is no run, or a file of it is missing or damaged.

    Example:
      >>> run_facts("runs/quickstart").facts["fit sentences"]       # doctest: +SKIP
      20000
    """
    directory = Path(directory)
    if not (directory / RUN).is_file():
        raise AtlasError(f"'{directory}' is not a run (no {RUN}); make one with atlas-jax align")
    run, corpus = read_json(directory / RUN), read_json(directory / "corpus" / "corpus.json")
    try:
        settings = run["settings"]
        methods = [*settings["methods"], *run.get("chosen", ())]
        facts = _facts(directory, run, corpus)
        sites = dict.fromkeys(str(Site.parse(site)) for site in settings["sites"])
        rows = [_translation(directory, site, method) for site in sites for method in methods]
    except (KeyError, TypeError, AttributeError) as e:
        raise AtlasError(f"the run '{directory}' is damaged ({type(e).__name__}: {e}); align again") from e
    return RunFacts(facts, rows)


def _facts(directory: Path, run: Mapping[str, Any], corpus: Mapping[str, Any]) -> dict[str, Any]:
    settings, sources = run["settings"], run["sources"]
    facts = {name: _source(sources[name]) for name in ("subject", "atlas")}
    facts |= {f"{name} hash": sources[name]["sha256"] for name in ("subject", "atlas")}
    facts |= {"sites": settings["sites"], "methods": [*settings["methods"], *run.get("chosen", ())]}
    facts |= {"fit sentences": corpus["n_fit"], "held-out sentences": corpus["n_eval"], "corpus hash": corpus["hash"]}
    facts |= {"sentences left out": len(run.get("left_out", ()))}
    facts |= {k.replace("_", " "): v for k, v in settings.items() if k not in ("sites", "methods")}
    facts |= {"strongest sentences": _names(directory / "top", "*.safetensors"), "tables": _names(directory / "tables")}
    facts |= {name: sources.get(name, "unknown") for name in ("jax", "atlas-jax")}
    return facts | {"bytes": _bytes(directory)}


def _source(source: Mapping[str, Any]) -> str:
    path = source["path"]
    return path if Path(path).is_dir() else f"{path} (no longer there)"


def _translation(directory: Path, site: str, method: str) -> dict[str, Any]:
    folder = directory / "translations" / site / method
    record = read_json(folder / RECORD)
    (d_s, d_c), certificate = record["shape"], record["certificate"]
    return {
        "site": site,
        "method": method,
        "subject features": d_s,
        "atlas features": d_c,
        "token norm": record.get("token_norm"),
        "within tolerances": certificate.get("accepted"),
        "bytes": _bytes(folder),
    }


def _names(directory: Path, pattern: str = "*") -> Sequence[str]:
    return sorted(path.stem for path in directory.glob(pattern))


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
