"""Records of experiments with a row or two, and what hostile text is made of."""

import json
import re

from atlas_jax.experiments import (
    CausalCell,
    Causality,
    Cost,
    Coverage,
    Curve,
    CurvePoint,
    DomainCell,
    Domains,
    Layers,
    Quality,
    QualityRow,
    Retrieval,
    RetrievalRow,
    Score,
    SteeringConcept,
    SteeringEvaluation,
    SteeringSettings,
)
from atlas_jax.experiments._domains import ALL
from atlas_jax.metrics import Interval
from atlas_jax.types import Site

SCRIPT = "</script><script>document.title='owned'</script><!--<img src=x onerror=\"document.title='owned'\">"
TURNED = "\u202eright to left\u2066 \u200fmarks\x00\x1b[31m"
HOSTILE = f"{SCRIPT}{TURNED}"
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


INTERVAL = Interval(0.5, 0.4, 0.6, 9, 1)
Z1, Z2 = Site("z", 1), Site("z", 2)
ROWS = [QualityRow(s, m, INTERVAL, INTERVAL._replace(mean=x)) for s, m, x in [(Z1, "ridge", 0.5), (Z2, "random", 0.45)]]
SETTINGS = SteeringSettings(
    (SteeringConcept("dogs", (7, 9), (1.0, 0.5)),), ("I",), (0.5,), (("z.1", "z.2"),), ("ridge",)
)
SCORE = Score("ridge", "z.1+z.2", INTERVAL, INTERVAL, None, None, 1, 1.2, 0.5, 0.1, None, 0)
CELLS = [DomainCell(fit, test, ROWS[0]) for fit in ("b", "a", ALL) for test in ("b", "a", ALL)]
SIZES = {"b": (9, 9), "a": (9, 9), ALL: (20, 20)}
TEXTS = [CausalCell(c, "dogs", x, x, 9.0, ["text"]) for c, x in [("unsteered", 0.0), ("steered", 0.5)]]
RECORDS = {
    "quality": Quality(ROWS, [3, 5], (0.005, 0.2), 0.04, 100),
    "curve": Curve([CurvePoint(n, ROWS[0]) for n in (100, 1000)], [3, 5], None, 0.04, 100),
    "layers": Layers(ROWS, [3, 5], None, 0.04, 100),
    "domains": Domains(CELLS, SIZES, {"c": (1, 0)}, 5, dict.fromkeys(SIZES, 0.04), [3], None),
    "causality": Causality(TEXTS, ["cats"], Z1, (Z2,), "ridge", 0.5, ["I"]),
    "retrieval": Retrieval([RetrievalRow(Z1, "ridge", INTERVAL, INTERVAL, (0.1, 0.2))], {Z1: 9}, True, 20, 100),
    "coverage": Coverage(100, 10, 1536, 3, 1),
    "evaluation": SteeringEvaluation(SETTINGS, "proxy", [SCORE], INTERVAL, [Cost("ridge", "z.1", 0.5, 1.1, 0.2)], {}),
}


def as_stored(record):
    """A record as a JSON file keeps it."""
    return json.loads(json.dumps(record.to_dict(), sort_keys=True))


def tables_of(record):
    return record.tables() if hasattr(record, "tables") else [record.table()]
