"""What a run directory holds, told from its files alone: no model is loaded."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atlas_jax.files import read_json, reading
from atlas_jax.pipeline._run_files import AGAIN, Record
from atlas_jax.table import Column, Table
from atlas_jax.translation import RECORD

MB = 1e6


class RunFacts(NamedTuple):
    """A run in plain values.

    Attributes:
      facts: names and values: models, corpus, settings, versions, sizes.
      translations: a row a site and method: shape, the site's mean token norm, whether the certificate is within its
        tolerances (None where it judges nothing), bytes.
    """

    facts: dict[str, Any]
    translations: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict()

    as_json = to_dict

    def tables(self) -> list[Table]:
        """The run's facts, its sites and its translations."""
        facts = [(name, _shown(name, value)) for name, value in self.facts.items()]
        sites = [
            (r["site"], r["subject features"], r["atlas features"], "unknown" if (n := r["token norm"]) is None else n)
            for r in {row["site"]: row for row in self.translations}.values()
        ]
        judged = {True: "within", False: "misses", None: "-"}
        solved = [(r["site"], r["method"], judged[r["within tolerances"]], r["bytes"] / MB) for r in self.translations]
        norm = "token norm: mean length of the site's activation at a token, the unit of strengths"
        certificate = "certificate: whether the solution is within its tolerances, - where it judges nothing"
        widths = Column("subject features", "d"), Column("atlas features", "d")
        size = Column("size", ".1f", " MB")
        return [
            Table("Run", (Column(), Column()), facts),
            Table("Sites", (Column("site"), *widths, Column("token norm", ".4g")), sites, norm),
            Table("Translations", (Column("site"), Column("method"), Column("certificate"), size), solved, certificate),
        ]


def run_facts(directory: str | Path) -> RunFacts:
    """Describe a run.

    Raises:
      AtlasError: if it is no run, or a file of it is missing or damaged.

    Example:
      >>> run_facts("runs/quickstart").facts["fit sentences"]       # doctest: +SKIP
      20000
    """
    directory = Path(directory)
    record = Record.read(directory)
    with reading(directory / "corpus" / "corpus.json", AGAIN):
        corpus = read_json(directory / "corpus" / "corpus.json")
        facts = _facts(directory, record, corpus)
    rows = [_translation(directory, site, method) for site in record.settings.sites for method in record.methods]
    return RunFacts(facts, rows)


def _facts(directory: Path, record: Record, corpus: Mapping[str, Any]) -> dict[str, Any]:
    settings, sources = dataclasses.asdict(record.settings), record.sources
    facts = {name: _source(sources[name]) for name in ("subject", "atlas")}
    facts |= {f"{name} hash": sources[name]["sha256"] for name in ("subject", "atlas")}
    facts |= {"sites": list(settings["sites"]), "methods": list(record.methods)}
    facts |= {"fit sentences": corpus["n_fit"], "held-out sentences": corpus["n_eval"], "corpus hash": corpus["hash"]}
    facts |= {"sentences left out": len(record.left_out)}
    facts |= {k.replace("_", " "): v for k, v in settings.items() if k not in ("sites", "methods")}
    facts |= {"strongest sentences": _names(directory / "top", "*.safetensors"), "tables": _names(directory / "tables")}
    facts |= {name: sources.get(name, "unknown") for name in ("jax", "atlas-jax")}
    return facts | {"bytes": _bytes(directory)}


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value / MB:.1f} MB" if name == "bytes" else str(value) or "none"


def _source(source: Mapping[str, Any]) -> str:
    path = source["path"]
    return path if Path(path).is_dir() else f"{path} (no longer there)"


def _translation(directory: Path, site: str, method: str) -> dict[str, Any]:
    folder = directory / "translations" / site / method
    with reading(folder / RECORD, AGAIN):
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
