"""Devices that a plan may be for: their memory and rates."""

import os
from typing import NamedTuple

from atlas_jax.errors import AtlasError

REACHED = 0.6  # share of the stated rates that models and statistics are taken to reach
USABLE = 0.92  # share of the memory that XLA can give to arrays


class Device(NamedTuple):
    """A kind of device.

    Attributes:
      name: its name in :data:`DEVICES`.
      memory: bytes.
      bfloat16: operations a second with bfloat16 operands.
      float32: the same with float32 operands at the highest precision.
      float64: the same in float64, 0 where the device has none and the host solves.
      traffic: bytes a second to and from its memory.

    Example:
      >>> from atlas_jax.pipeline import DEVICES
      >>> DEVICES["h100"].memory // 10**9
      80
    """

    name: str
    memory: int
    bfloat16: float
    float32: float
    float64: float
    traffic: float


DEVICES = {  # as their makers state them, without sparsity; float32 at the highest precision is 6 passes on a TPU
    device.name: device
    for device in (
        Device("h100", 80 * 10**9, 989e12, 67e12, 67e12, 3.35e12),
        Device("h200", 141 * 10**9, 989e12, 67e12, 67e12, 4.8e12),
        Device("a100-80gb", 80 * 10**9, 312e12, 19.5e12, 19.5e12, 2.0e12),
        Device("v5e", 16 * 2**30, 197e12, 33e12, 0.0, 0.82e12),
        Device("v5p", 95 * 2**30, 459e12, 76e12, 0.0, 2.77e12),
    )
}
CORE = 140e9 / REACHED  # float32 operations a second of one CPU core, as measured on two with AVX-512
HOST = Device("cpu", 0, CORE, CORE, CORE / 2.5, 25e9)  # of one core


def known_device(name: str | None = None) -> Device:
    """Return a kind of device by its name; the kind there is here by default.

    Raises:
      AtlasError: for an unknown one, naming the known.

    Example:
      >>> from atlas_jax.pipeline import known_device
      >>> known_device("v5e").name
      'v5e'
      >>> known_device("tpu9")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: unknown device 'tpu9'; known are cpu, h100, h200, a100-80gb, v5e, v5p
    """
    if name is None:
        return _here()
    if name == "cpu":
        return _host()
    if name not in DEVICES:
        raise AtlasError(f"unknown device '{name}'; known are cpu, {', '.join(DEVICES)}")
    return DEVICES[name]


def _host() -> Device:
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return HOST._replace(memory=memory, **{n: cores * getattr(HOST, n) for n in ("bfloat16", "float32", "float64")})


def _here() -> Device:
    """The device of this process; an unknown accelerator has the rates of an H100, and its own memory."""
    import jax

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _host()
    kind = device.device_kind.lower().replace("tpu ", "")
    known = next(
        (d for name, d in DEVICES.items() if name.split("-")[0] in kind.replace(" lite", "e")), DEVICES["h100"]
    )
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return known if memory is None else known._replace(name=device.device_kind, memory=int(memory / USABLE))
