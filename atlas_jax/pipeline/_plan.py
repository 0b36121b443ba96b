"""The plan of an alignment: bytes, operations and seconds of every stage, from configs alone."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from atlas_jax.pipeline._compiled import compiled_bytes
from atlas_jax.pipeline._devices import USABLE
from atlas_jax.pipeline._plan_costs import (
    MEAN_TOKENS,
    PADDING,
    Setup,
    Stage,
    batch_bytes,
    columns_of,
    on_host,
    parameter_bytes,
    process_bytes,
    rows_of,
    solving,
    stage_of,
    statistics_bytes,
    widths_of,
    work_of_atlas,
    work_of_pass,
)
from atlas_jax.table import Column, Table
from atlas_jax.translators import METHODS

GiB = 2**30


class Plan(NamedTuple):
    """What an alignment would hold and take.

    Attributes:
      setup: what it is of.
      held: bytes on each device by what they are.
      stages: in their order.
      change: what would make it fit, in words; None where it fits or nothing does.
      host: bytes of statistics and solves in the memory of the host, with ``host_statistics``.
      compiled: bytes of the pass by XLA's analysis of its programs, see :func:`compiled_plan`; empty without.

    Example:
      >>> from atlas_jax import AlignSettings, LanguageModel, ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import Setup, known_device, plan_alignment
      >>> subject, atlas = LanguageModel.from_pretrained(SUBJECT), ConceptAtlas.from_pretrained(ATLAS)
      >>> settings = AlignSettings(("mlp_act.1",), ("procrustes",))
      >>> parts = subject.config, atlas.model.config, atlas.sae.config, atlas.site
      >>> plan_alignment(Setup(*parts, settings, (20000, 10000), known_device("h100"))).fits
      True
    """

    setup: Setup
    held: Mapping[str, int]
    stages: tuple[Stage, ...]
    change: str | None = None
    host: int = 0
    compiled: Mapping[str, int] = MappingProxyType({})

    @property
    def peak(self) -> int:
        """Bytes on each device at most."""
        return max(stage.peak for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def room(self) -> float:
        """Bytes of a device that arrays can have; simulated devices share those of the host."""
        shared = self.setup.devices if self.setup.device.name == "cpu" else 1
        return self.setup.device.memory * USABLE / shared

    @property
    def fits(self) -> bool:
        """Whether every stage has room."""
        return self.peak <= self.room

    def line(self) -> str:
        """Say it in one line."""
        where = f"{self.setup.devices} x {self.setup.device.name}"
        said = f"about {_time(self.seconds)} and {self.peak / GiB:.1f} GiB a device on {where}"
        if self.host:
            said += f", {self.host / GiB:.1f} GiB in the memory of the host"
        if self.setup.passes > 1:
            several = "one site" if self.setup.at_once == 1 else f"{self.setup.at_once} sites"
            said += f", in {self.setup.passes} passes over the text for {several} at once"
        if self.fits:
            return said
        advice = f"; it would fit with {self.change}" if self.change else ""
        return f"{said}, which has {self.room / GiB:.1f} GiB to give{advice}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "device": self.setup.device._asdict(), "devices": self.setup.devices, "passes": self.setup.passes,
            "held": dict(self.held), "stages": [s._asdict() for s in self.stages], "peak": self.peak,
            "room": self.room, "seconds": self.seconds, "fits": self.fits, "change": self.change, "host": self.host,
            "at_once": len(self.setup.sites), "compiled": dict(self.compiled),
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Tabulate what is held and the stages."""
        held = [(name, size / GiB) for name, size in self.held.items()]
        columns = Column("stage"), Column("peak", ".2f", " GiB"), Column("operations", ".1e"), Column("time")
        stages = [(s.name, s.peak / GiB, s.operations, _time(s.seconds)) for s in self.stages]
        caption = "rates are those stated for the device, of which six tenths are reached; compiling is not counted"
        if self.compiled:
            caption += "; the memory of the fit half is XLA's own analysis of its programs"
        return [
            Table("Held on each device", (Column("what"), Column("size", ".2f", " GiB")), held, self.line()),
            Table("Stages", columns, stages, caption),
        ]


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def plan_alignment(setup: Setup) -> Plan:
    """Compute the plan of an alignment, and what would make it fit where it does not.

    Where not all sites fit at once, it is that of as many of them as do, in several passes over the text: as
    ``atlas-jax align`` does it.

    Bytes of parameters and statistics are exact; those of a batch and of a solve are what XLA's programs were found
    to need. Times are operations and traffic over the rates of the device.

    Example:
      >>> from atlas_jax import AlignSettings
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import known_device, plan_alignment, read_setup
      >>> settings = AlignSettings(("mlp_act.1",), ("covariance",))
      >>> plan = plan_alignment(read_setup(SUBJECT, ATLAS, settings, (200, 100), known_device("v5e")))
      >>> [stage.name for stage in plan.stages]
      ['read the fit half', 'solve', 'measure on the eval half']
    """
    plan = _plan(setup)
    if not plan.fits and setup.at_once is None:
        fewer = (_plan(dataclasses.replace(setup, at_once=n)) for n in _fewer_sites(setup))
        plan = next((p for p in fewer if p.fits), plan)
    return plan if plan.fits else plan._replace(change=_change(setup))


def compiled_plan(plan: Plan) -> Plan:
    """Compile the steps of the pass for the devices that are here, and take its memory from XLA's analysis of them.

    Programs are compiled from shapes, without weights. ``plan`` must be of devices of this process.

    Example:
      >>> from atlas_jax import AlignSettings
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import compiled_plan, known_device, plan_alignment, read_setup
      >>> settings = AlignSettings(("mlp_act.1",), ("covariance",))
      >>> plan = plan_alignment(read_setup(SUBJECT, ATLAS, settings, (200, 100), known_device()))
      >>> sorted(compiled_plan(plan).compiled)
      ['atlas', 'held', 'statistics', 'subject']
    """
    by_xla = compiled_bytes(plan.setup)
    first, *rest = plan.stages
    peak = process_bytes(plan.setup) + by_xla["held"] + max(size for name, size in by_xla.items() if name != "held")
    return plan._replace(stages=(first._replace(peak=peak), *rest), compiled=by_xla)


def _plan(setup: Setup) -> Plan:
    held, (statistics, matrices) = parameter_bytes(setup), statistics_bytes(setup)
    process, (batch, forward), solves = process_bytes(setup), batch_bytes(setup), solving(setup)
    parameters = sum(held.values()) + process
    held |= {"a batch through a model": forward} | ({"programs, text and the like": process} if process else {})
    size = sum(statistics.values())
    fixed, step, lens, host = parameters, 0, 0, 0  # of the device, where statistics are on the host
    if setup.host_statistics:
        host = size + max(matrices, solves.peak)
        solves = solves._replace(peak=fixed)
    else:
        fixed += size
        step = matrices + 24 * rows_of(setup) * columns_of(setup)
        lens = 4 * sum(widths_of(setup).values()) * setup.sae.d_sae // setup.devices
        solves = solves._replace(peak=fixed + solves.peak)
        held |= statistics | {"a batch into the statistics": step}
    n_fit, n_eval = setup.sentences
    passes = setup.passes
    stages = [
        stage_of(setup, "read the fit half", fixed + batch + max(forward, step), *work_of_pass(setup, n_fit), passes)
    ]
    if setup.host_statistics:
        stages.append(on_host(setup, n_fit, fixed))
    methods = setup.settings.methods
    if any(METHODS[m].second_pass for m in methods):
        wanted = min(n_fit, sum(widths_of(setup).values()) * setup.settings.top_k)
        work = wanted * MEAN_TOKENS * PADDING * work_of_atlas(setup)
        stages.append(stage_of(setup, "second pass", fixed + lens + batch + forward, work, 0.0, passes))
    stages.append(solves)
    work, traffic = work_of_pass(setup, n_eval, reading=True)
    stages.append(stage_of(setup, "measure on the eval half", fixed + batch + forward, work, traffic, 1))
    return Plan(setup, held, tuple(stages), host=host)


def _fewer_sites(setup: Setup) -> list[int]:
    """How many sites a pass may have where it does not have all, the most first: each with the fewest passes."""
    count = len(setup.settings.sites)
    return sorted({math.ceil(count / passes) for passes in range(2, count + 1)}, reverse=True)


def _change(setup: Setup) -> str | None:
    """The fewest changes, and of these the quickest, that make an alignment fit."""
    changes = list(_changes(setup))
    for count in (1, 2, 3):
        enough = []
        for several in itertools.combinations(changes, count):
            if len({name for name, *_ in several}) == count:
                changed = setup
                for _, _, apply in several:
                    changed = apply(changed)
                plan = _plan(changed)
                if plan.fits:
                    enough.append((plan.seconds, " and ".join(words for _, words, _ in several)))
        if enough:
            return min(enough)[1]
    return None


def _changes(setup: Setup) -> Iterator[tuple[str, str, Any]]:
    """Every single change: what it is of, in words, and as a function."""
    settings = lambda **new: lambda s: dataclasses.replace(s, settings=dataclasses.replace(s.settings, **new))
    if setup.settings.dtype == "float32":
        yield "dtype", "--dtype bfloat16", settings(dtype="bfloat16")
    for budget in (2048, 1024, 512):
        if budget < setup.settings.token_budget:
            yield "budget", f"--token-budget {budget}", settings(token_budget=budget)
    for share in (2, 4, 8):
        if setup.devices % share == 0 and share > setup.model_parallel:
            words, apply = f"--model-parallel {share}", lambda s, n=share: dataclasses.replace(s, model_parallel=n)
            yield "model", words, apply
    for at_once in _fewer_sites(setup) if setup.at_once is None else ():
        yield "sites", f"--sites-at-once {at_once}", lambda s, n=at_once: dataclasses.replace(s, at_once=n)
    if not setup.host_statistics and setup.devices == 1:
        yield "statistics", "--host-statistics", lambda s: dataclasses.replace(s, host_statistics=True)
    if "least_squares" in setup.settings.methods and len(setup.settings.methods) > 1:
        rest = tuple(m for m in setup.settings.methods if m != "least_squares")
        yield "methods", "the --method options without least_squares", settings(methods=rest)
