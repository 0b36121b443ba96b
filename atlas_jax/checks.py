"""Checks of numbers and texts from callers: one sentence for input that would otherwise give wrong results silently.

Values are checked only where they are known: never inside a ``jit`` trace, nor in arrays of several processes.
"""

import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from atlas_jax.errors import AtlasError

AnyArray = Array | np.ndarray


def as_numbers(value: Any, what: str) -> Shaped[AnyArray, "..."]:
    """Return an array of real numbers: arrays as they are, numbers and lists of them in numpy.

    Raises:
      AtlasError: for text, complex numbers, lists of unequal length and anything else that is no array of real numbers.

    Example:
      >>> from atlas_jax.checks import as_numbers
      >>> as_numbers([1, 2.5], "the direction").tolist()
      [1.0, 2.5]
    """
    array = value
    if not isinstance(value, AnyArray):
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))
        try:
            array = jnp.asarray(value) if traced else np.asarray(value)
        except (TypeError, ValueError) as error:
            raise AtlasError(f"{what} must be an array of real numbers, not {_kind(value)}") from error
    real = array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)
    if not real or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise AtlasError(f"{what} must be an array of real numbers, not {_kind(value)}")
    return array


def _kind(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, AnyArray) else f"{value!r:.60}"


def known(array: Shaped[AnyArray, "..."]) -> bool:
    """True if the values of an array can be read here.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.checks import known
      >>> known(np.zeros(3))
      True
    """
    return not isinstance(array, jax.core.Tracer) and (isinstance(array, np.ndarray) or array.is_fully_addressable)


def on_host(array: Shaped[AnyArray, "..."]) -> bool:
    """True if the values of an array can be read without waiting for an accelerator.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.checks import on_host
      >>> on_host(np.zeros(3))
      True
    """
    if not known(array):
        return False
    return isinstance(array, np.ndarray) or all(device.platform == "cpu" for device in array.devices())


def refuse(bad: Any, array: Shaped[AnyArray, "..."], what: str, wanted: str) -> None:
    """Refuse an array with bad values: ``bad`` has the array's shape, and is true where a value is bad.

    Raises:
      AtlasError: with the first bad value, its place, and the values wanted.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.checks import refuse
      >>> x = np.array([1.0, -2.0])
      >>> refuse(x < 0, x, "the weight", "numbers from 0 up")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: the weight is -2.0 at [1]; give numbers from 0 up
    """
    if bad.any():
        place = np.argwhere(np.asarray(bad))[0].tolist()
        where = f" at {place}" if place else ""
        raise AtlasError(f"{what} is {np.asarray(array)[tuple(place)].item()}{where}; give {wanted}")


def check_finite(array: Shaped[AnyArray, "..."], what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
      AtlasError: naming the first.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.checks import check_finite
      >>> check_finite(np.array([1.0, np.inf]), "the direction")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: the direction is inf at [1]; give finite numbers
    """
    if known(array) and jnp.issubdtype(array.dtype, jnp.inexact):
        finite = np.isfinite(array) if isinstance(array, np.ndarray) else jnp.isfinite(array)
        refuse(~finite, array, what, "finite numbers")


def finite_numbers(value: Any, what: str) -> Shaped[AnyArray, "..."]:
    """Return an array of finite real numbers, as :func:`as_numbers` does.

    Raises:
      AtlasError: as :func:`as_numbers` and :func:`check_finite`.

    Example:
      >>> from atlas_jax.checks import finite_numbers
      >>> finite_numbers([1, 2.5], "the direction").tolist()
      [1.0, 2.5]
    """
    array = as_numbers(value, what)
    check_finite(array, what)
    return array


def as_count(value: Any, what: str, *, least: int = 1, most: int | None = None) -> int:
    """Return a whole number within bounds.

    Raises:
      AtlasError: for anything else.

    Example:
      >>> from atlas_jax.checks import as_count
      >>> as_count(2.5, "k")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: k must be a whole number from 1 up, not 2.5
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most is not None and number > most):
        bounds = f"from {least} up" if most is None else f"from {least} to {most}"
        raise AtlasError(f"{what} must be a whole number {bounds}, not {value!r}")
    return number


def as_number(value: Any, what: str, *, least: float | int = -np.inf, most: float | int = np.inf) -> float:
    """Return a finite number within bounds.

    Raises:
      AtlasError: for anything else.

    Example:
      >>> from atlas_jax.checks import as_number
      >>> as_number(float("nan"), "the penalty", least=0)
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: the penalty must be a number from 0 up, not nan
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if isinstance(value, str) or not (np.isfinite(number) and least <= number <= most):
        low = "" if least == -np.inf else f" from {least}" + (" up" if most == np.inf else "")
        high = "" if most == np.inf else f" to {most}"
        raise AtlasError(f"{what} must be a number{low}{high}, not {value!r}")
    return number


def as_texts(texts: Any) -> list[str]:
    """Return texts as a list; one string is one text.

    Raises:
      AtlasError: if there is none, or something that is no string.

    Example:
      >>> from atlas_jax.checks import as_texts
      >>> as_texts("a dog")
      ['a dog']
    """
    if not isinstance(texts, Iterable):
        raise AtlasError(f"a text should be a string, not {texts!r}")
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise AtlasError("there is no text; give at least one")
    if strange := [text for text in listed if not isinstance(text, str)]:
        raise AtlasError(f"a text should be a string, not {strange[0]!r}")
    return listed
