"""What is known about a matrix: tri-state properties in one uint64, what follows from them, and how operations carry them.

Property *i* owns two bits of `flags`: bit ``2 i`` says that it is known, bit ``2 i + 1`` which way. A claim is believed,
never verified, but claims that contradict each other are refused. What follows from a claim is found by unit propagation
over the clauses of `_IMPLICATIONS`, so that an identity is known to be diagonal and a matrix with an entry below the
diagonal not to be upper triangular.

How operations carry properties is told in `pycauset.propagation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, overload

import numpy as np

from pycauset.errors import ConfigError, ShapeError

__all__ = ["PROPERTIES", "STRUCTURES", "Properties", "closure", "known", "mask"]

PROPERTIES: Final[dict[str, str]] = {
    "is_zero": "every entry is 0",
    "is_identity": "1 on the diagonal, 0 elsewhere; square",
    "is_permutation": "one 1 in every row and column, 0 elsewhere; square",
    "is_diagonal": "0 off the main diagonal",
    "is_upper_triangular": "0 below the main diagonal",
    "is_lower_triangular": "0 above the main diagonal",
    "is_strictly_upper_triangular": "0 on and below the main diagonal",
    "is_strictly_lower_triangular": "0 on and above the main diagonal",
    "has_unit_diagonal": "1 all along the main diagonal",
    "has_zero_diagonal": "0 all along the main diagonal",
    "is_symmetric": "A.T = A",
    "is_skew_symmetric": "A.T = -A",
    "is_hermitian": "A.H = A",
    "is_skew_hermitian": "A.H = -A",
    "is_unitary": "A.H A = I; square",
    "is_orthogonal": "A.T A = I; square",
    "is_positive_definite": "Hermitian, and x.H A x > 0 for every x other than 0",
    "is_positive_semidefinite": "Hermitian, and x.H A x >= 0 for every x",
}
"""Every property and its meaning, in the order of the bits; at most 32."""

_INDEX: Final = {name: i for i, name in enumerate(PROPERTIES)}
# Every second bit: the known bits of all properties.
_KNOWN: Final = sum(1 << 2 * i for i in range(len(PROPERTIES)))


def mask(*names: str) -> int:
    """Flags in which the named properties are known to be true, and nothing else is known.

    Examples
    --------
    >>> hex(mask("is_zero", "is_identity"))
    '0xf'
    """
    return sum(3 << 2 * _index(name) for name in dict.fromkeys(names))


def known(flags: int, name: str) -> bool | None:
    """True, False, or None if the flags do not say.

    Examples
    --------
    >>> known(mask("is_zero"), "is_zero"), known(0, "is_zero")
    (True, None)
    """
    bits = flags >> 2 * _index(name)
    return bool(bits & 2) if bits & 1 else None


def _index(name: str) -> int:
    try:
        return _INDEX[name]
    except KeyError:
        raise ConfigError(f"no property is called {name!r}; there are {', '.join(PROPERTIES)}") from None


STRUCTURES: Final[dict[str, str]] = {
    "lower": "is_lower_triangular",
    "upper": "is_upper_triangular",
    "symmetric": "is_symmetric",
    "hermitian": "is_hermitian",
    "skew": "is_skew_symmetric",
}
"""What holds of any matrix of which a store keeps one triangle, by the store's structure."""


# ---- implications ---------------------------------------------------------------------------------------------------

SQUARE_ONLY: Final = mask(
    *("is_identity", "is_permutation", "is_symmetric", "is_skew_symmetric", "is_hermitian", "is_skew_hermitian"),
    *("is_unitary", "is_orthogonal", "is_positive_definite", "is_positive_semidefinite"),
)

# Each line: what holds together, and what follows. "not x" may follow. They hold for matrices with at least one entry;
# a line about square matrices is left out for others, a line that starts with "real" holds for real dtypes only.
_IMPLICATIONS: Final = """
is_zero: is_strictly_upper_triangular, is_strictly_lower_triangular, is_symmetric, is_skew_symmetric, is_hermitian
is_zero: is_skew_hermitian, is_positive_semidefinite, not is_positive_definite, not is_unitary, not is_orthogonal
is_strictly_upper_triangular, is_lower_triangular: is_zero
is_strictly_lower_triangular, is_upper_triangular: is_zero
is_identity: is_permutation, is_diagonal, has_unit_diagonal, is_positive_definite
is_permutation: is_unitary, is_orthogonal, not is_skew_symmetric, not is_skew_hermitian
is_permutation, has_unit_diagonal: is_identity
is_permutation, is_upper_triangular: is_identity
is_permutation, is_lower_triangular: is_identity
is_diagonal: is_upper_triangular, is_lower_triangular, is_symmetric
is_upper_triangular, is_lower_triangular: is_diagonal
is_diagonal, has_unit_diagonal: is_identity
is_upper_triangular, is_symmetric: is_diagonal
is_upper_triangular, is_hermitian: is_diagonal
is_upper_triangular, is_skew_symmetric: is_zero
is_upper_triangular, is_skew_hermitian: is_diagonal
is_lower_triangular, is_symmetric: is_diagonal
is_lower_triangular, is_hermitian: is_diagonal
is_lower_triangular, is_skew_symmetric: is_zero
is_lower_triangular, is_skew_hermitian: is_diagonal
is_strictly_upper_triangular: is_upper_triangular, has_zero_diagonal
is_strictly_lower_triangular: is_lower_triangular, has_zero_diagonal
is_upper_triangular, has_zero_diagonal: is_strictly_upper_triangular
is_lower_triangular, has_zero_diagonal: is_strictly_lower_triangular
has_unit_diagonal: not has_zero_diagonal, not is_skew_hermitian
is_strictly_upper_triangular: not is_unitary, not is_orthogonal
is_strictly_lower_triangular: not is_unitary, not is_orthogonal
is_skew_symmetric: has_zero_diagonal
is_symmetric, is_skew_symmetric: is_zero
is_hermitian, is_skew_hermitian: is_zero
is_positive_definite: is_positive_semidefinite, not has_zero_diagonal
is_positive_semidefinite: is_hermitian
is_positive_semidefinite, has_zero_diagonal: is_zero
is_positive_semidefinite, is_unitary: is_identity
is_positive_semidefinite, is_skew_hermitian: is_zero
real is_symmetric: is_hermitian
real is_hermitian: is_symmetric
real is_skew_symmetric: is_skew_hermitian
real is_skew_hermitian: is_skew_symmetric
real is_unitary: is_orthogonal
real is_orthogonal: is_unitary
"""


def _literal(word: str) -> int:
    """The two bits of ``"name"`` or ``"not name"``."""
    name = word.strip().removeprefix("not ")
    return (1 if word.strip().startswith("not ") else 3) << 2 * _INDEX[name]


@lru_cache(maxsize=4)
def _clauses(square: bool, real: bool) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Clauses in conjunctive form: of each, at least one ``(known bit, literal)`` holds."""
    clauses = []
    for line in _IMPLICATIONS.strip().splitlines():
        premises, _, conclusions = line.removeprefix("real ").partition(":")
        if line.startswith("real ") and not real:
            continue
        for conclusion in conclusions.split(","):
            literals = [_literal(conclusion)]
            for premise in premises.split(","):
                bits = _literal(premise)
                literals.append(bits & _KNOWN if bits & ~_KNOWN else bits | bits << 1)  # negated
            if square or not any(literal & _KNOWN & SQUARE_ONLY for literal in literals):
                clauses.append(tuple((literal & _KNOWN, literal) for literal in literals))
    return tuple(clauses)


@lru_cache(maxsize=8192)
def closure(flags: int, shape: tuple[int, int], real: bool) -> int:
    """`flags` and everything that follows from them.

    Parameters
    ----------
    flags : int
    shape : tuple of int
    real : bool
        Whether the dtype is real (booleans and integers are).

    Raises
    ------
    ConfigError
        If the properties contradict each other.
    ShapeError
        If a property that only square matrices have is claimed of another.

    Examples
    --------
    >>> known(closure(mask("is_diagonal"), (3, 3), real=True), "is_hermitian")
    True
    """
    if shape[0] != shape[1]:
        claimed = [name for name in PROPERTIES if mask(name) & SQUARE_ONLY and known(flags, name)]
        if claimed:
            raise ShapeError(f"{' and '.join(claimed)} was claimed of a {shape[0]} × {shape[1]} matrix; it takes a square one")
        flags |= SQUARE_ONLY & _KNOWN
    if 0 in shape:
        return flags  # everything that quantifies over entries holds of an empty matrix, opposites too
    changed = True
    while changed:
        changed = False
        for clause in _clauses(shape[0] == shape[1], real):
            open_literals = []
            for bit, literal in clause:
                if not flags & bit:
                    open_literals.append(literal)
                elif flags & bit * 3 == literal:
                    break  # the clause holds
            else:
                if not open_literals:
                    raise ConfigError(_contradiction(flags, clause))
                if len(open_literals) == 1:
                    flags |= open_literals[0]
                    changed = True
    return flags


def _contradiction(flags: int, clause: tuple[tuple[int, int], ...]) -> str:
    names = [name for bit, _ in reversed(clause) for name in PROPERTIES if bit == mask(name) & _KNOWN]
    claims = " and ".join(f"{name} = {known(flags, name)}" for name in names)
    return f"{claims} (claimed, or following from a claim) contradict each other; withdraw one by setting it to None"


# ---- what a matrix carries -----------------------------------------------------------------------------------------


class _Property:
    """Attribute access to one property."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__doc__ = f"bool or None : {PROPERTIES[name]}."

    @overload
    def __get__(self, instance: None, owner: type) -> _Property: ...
    @overload
    def __get__(self, instance: Properties, owner: type) -> bool | None: ...
    def __get__(self, instance: Properties | None, owner: type) -> _Property | bool | None:
        return self if instance is None else known(instance.flags, self.name)

    def __set__(self, instance: Properties, value: bool | None) -> None:
        instance[self.name] = value


class Properties:
    """The properties of one matrix: True, False or None (unknown), by attribute or by name.

    Setting a property is a claim: it is believed, not checked against the entries, and kernels exploit it. What follows
    from the claims is known too. Setting None withdraws a claim; what follows from the others stays.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype_like
        For real dtypes symmetric and Hermitian are the same, and so are orthogonal and unitary.
    flags : int
        Claims to start from: two bits a property, see `flags`.

    Raises
    ------
    ConfigError
        If claims contradict each other, or a name, value or flag bit has no meaning.
    ShapeError
        If a matrix that is not square is claimed to be, say, symmetric.

    Examples
    --------
    >>> properties = Properties((3, 3), "float64")
    >>> properties.is_diagonal = True
    >>> properties.is_symmetric, properties["is_zero"]
    (True, None)
    >>> properties.has_unit_diagonal = True
    >>> properties.is_identity
    True
    >>> properties.is_zero = True
    Traceback (most recent call last):
    ...
    pycauset.errors.ConfigError: ...
    """

    __slots__ = ("_claims", "_flags", "_real", "_shape")

    is_zero = _Property("is_zero")
    is_identity = _Property("is_identity")
    is_permutation = _Property("is_permutation")
    is_diagonal = _Property("is_diagonal")
    is_upper_triangular = _Property("is_upper_triangular")
    is_lower_triangular = _Property("is_lower_triangular")
    is_strictly_upper_triangular = _Property("is_strictly_upper_triangular")
    is_strictly_lower_triangular = _Property("is_strictly_lower_triangular")
    has_unit_diagonal = _Property("has_unit_diagonal")
    has_zero_diagonal = _Property("has_zero_diagonal")
    is_symmetric = _Property("is_symmetric")
    is_skew_symmetric = _Property("is_skew_symmetric")
    is_hermitian = _Property("is_hermitian")
    is_skew_hermitian = _Property("is_skew_hermitian")
    is_unitary = _Property("is_unitary")
    is_orthogonal = _Property("is_orthogonal")
    is_positive_definite = _Property("is_positive_definite")
    is_positive_semidefinite = _Property("is_positive_semidefinite")

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any] | type | str, flags: int = 0) -> None:
        self._shape = (int(shape[0]), int(shape[1]))
        self._real = np.dtype(dtype).kind != "c"
        self._claims = self._flags = 0
        self._claim(flags)

    @classmethod
    def from_flags(cls, flags: int, shape: tuple[int, int], dtype: np.dtype[Any] | type | str) -> Properties:
        """The properties that `flags` describe, as claims."""
        return cls(shape, dtype, flags)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], shape: tuple[int, int], dtype: np.dtype[Any] | type | str) -> Properties:
        """The inverse of `to_json`. Names that this version does not know are left out.

        Raises
        ------
        ConfigError
            If a value is no bool, or claims contradict each other.
        """
        flags = 0
        for name, value in values.items():
            if name in _INDEX:
                flags |= _bits(name, value)
        return cls(shape, dtype, flags)

    def to_json(self) -> dict[str, bool]:
        """The claims by name (not what follows from them), for the attributes of a store."""
        return {name: bool(known(self._claims, name)) for name in PROPERTIES if known(self._claims, name) is not None}

    @property
    def flags(self) -> int:
        """Claims and what follows from them as a uint64: property i owns bits ``2 i`` and ``2 i + 1``."""
        return self._flags

    @property
    def claims(self) -> int:
        """What was claimed, without what follows from it; laid out as `flags`."""
        return self._claims

    def copy(self) -> Properties:
        return type(self)(self._shape, "f8" if self._real else "c16", self._claims)

    def clear(self) -> None:
        """Withdraw every claim."""
        self._claim(0)

    def update(self, values: Mapping[str, bool | None]) -> None:
        """Set several properties; all of them, or none if they contradict each other."""
        claims = self._claims
        for name, value in values.items():
            claims = claims & ~mask(name) | _bits(name, value)
        self._claim(claims)

    def _claim(self, claims: int) -> None:
        flags = closure(_checked(claims), self._shape, self._real)
        self._claims, self._flags = claims, flags

    def __getattr__(self, name: str) -> bool | None:
        raise AttributeError(f"no property is called {name!r}; there are {', '.join(PROPERTIES)}", name=name, obj=self)

    def __getitem__(self, name: str) -> bool | None:
        return known(self._flags, name)

    def __setitem__(self, name: str, value: bool | None) -> None:
        self.update({name: value})

    def __contains__(self, name: object) -> bool:
        return name in _INDEX and known(self._flags, str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return (name for name in PROPERTIES if known(self._flags, name) is not None)

    def __len__(self) -> int:
        return (self._flags & _KNOWN).bit_count()

    def keys(self) -> tuple[str, ...]:
        """Names of the known properties."""
        return tuple(self)

    def items(self) -> tuple[tuple[str, bool], ...]:
        """Known properties and their values."""
        return tuple((name, bool(known(self._flags, name))) for name in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Properties) and self._flags == other._flags

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Properties({', '.join(f'{name}={value}' for name, value in self.items())})"


def _bits(name: str, value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} is set to {value!r}; it must be True, False, or None for unknown")
    return mask(name) if value else mask(name) & _KNOWN


def _checked(flags: int) -> int:
    """`flags`, if every set bit has a meaning."""
    if flags < 0 or flags & ~(_KNOWN * 3) or flags >> 1 & _KNOWN & ~flags:
        raise ConfigError(f"property flags {flags:#x} have bits without meaning; each of {len(PROPERTIES)} properties has two")
    return flags
