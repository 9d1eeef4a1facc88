from __future__ import annotations

import json
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pycauset.errors import ConfigError, ShapeError
from pycauset.properties import PROPERTIES, SQUARE_ONLY, Properties, closure, known, mask
from tests.properties.explicit import Array, all_flags, assert_true_of, claimed, facts, matrices


@given(matrices(), st.data())
def test_what_follows_from_the_truth_is_true(a: Array, data: st.DataObject) -> None:
    assert_true_of(data.draw(claimed(a)), a)


@given(matrices())
def test_the_whole_truth_is_closed(a: Array) -> None:
    flags = all_flags(a)
    assert closure(flags, a.shape, a.dtype.kind != "c") == flags


@given(st.dictionaries(st.sampled_from(list(PROPERTIES)), st.booleans(), max_size=5), st.booleans())
def test_closure_is_monotone_and_idempotent(claims: dict[str, bool], real: bool) -> None:
    flags = sum(mask(name) if value else mask(name) // 3 & mask(name) for name, value in claims.items())
    try:
        closed = closure(flags, (3, 3), real)
    except ConfigError:
        return
    assert closed & flags == flags
    assert closure(closed, (3, 3), real) == closed
    for name, value in claims.items():
        assert known(closed, name) is value


def test_pairs_that_no_small_matrix_satisfies_are_refused() -> None:
    """Over all 2 × 2 matrices with entries in {-1, 0, 1, 2, i}: a pair of claims is refused if and only if none satisfies it."""
    seen: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for entries in product((-1, 0, 1, 2, 1j), repeat=4):
        a = np.array(entries, dtype=complex).reshape(2, 2)
        true = [name for name, value in facts(a).items() if value]
        pairs = set(product(true, true))
        seen[False] |= pairs
        if not a.imag.any():
            seen[True] |= pairs
    wrong = []
    for real, x, y in product((True, False), PROPERTIES, PROPERTIES):
        possible = (x, y) in seen[real]
        try:
            closure(mask(x, y), (2, 2), real)
            accepted = True
        except ConfigError:
            accepted = False
        if accepted is not possible:
            wrong.append((real, x, y, "accepted" if accepted else "refused"))
    assert wrong == []


def test_claims_and_consequences() -> None:
    properties = Properties((4, 4), "f8")
    assert properties.is_symmetric is None
    properties.is_identity = True
    for name in ("is_permutation", "is_diagonal", "is_upper_triangular", "has_unit_diagonal", "is_symmetric", "is_hermitian"):
        assert properties[name] is True
    assert properties.is_orthogonal is properties.is_positive_definite is True
    assert properties.is_zero is properties.has_zero_diagonal is False
    assert properties.claims == mask("is_identity")
    properties.is_identity = None
    assert properties.flags == 0
    assert len(properties) == 0


def test_falsehoods_are_known_too() -> None:
    properties = Properties((4, 4), "f8")
    properties.is_upper_triangular = False
    assert properties.is_diagonal is properties.is_zero is properties.is_identity is False
    assert properties.is_lower_triangular is None


def test_complex_symmetric_is_not_hermitian() -> None:
    properties = Properties((4, 4), "c16")
    properties.is_symmetric = True
    assert properties.is_hermitian is None
    assert Properties((4, 4), "c16", mask("is_diagonal")).is_hermitian is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"is_zero": True}, {"has_unit_diagonal": True}),
        ({"is_identity": True}, {"is_symmetric": False}),
        ({"is_diagonal": True}, {"is_upper_triangular": False}),
        ({"is_positive_definite": True}, {"has_zero_diagonal": True}),
        ({"is_strictly_lower_triangular": True}, {"is_unitary": True}),
    ],
)
def test_contradictions_are_refused_and_change_nothing(first: dict[str, bool], second: dict[str, bool]) -> None:
    properties = Properties((3, 3), "f8")
    properties.update(first)
    before = properties.flags
    name, value = next(iter(second.items()))
    with pytest.raises(ConfigError, match="contradict") as caught:
        setattr(properties, name, value)
    assert "None" in str(caught.value)
    assert properties.flags == before
    with pytest.raises(ConfigError):
        Properties((3, 3), "f8").update({**first, **second})


@pytest.mark.parametrize("name", [name for name in PROPERTIES if mask(name) & SQUARE_ONLY])
def test_square_properties_of_other_shapes(name: str) -> None:
    properties = Properties((3, 4), "f8")
    with pytest.raises(ShapeError, match=f"{name} was claimed of a 3 × 4"):
        properties[name] = True
    properties[name] = False
    assert properties[name] is False


def test_rectangular_matrices_are_triangular_too() -> None:
    properties = Properties((3, 4), "f8")
    properties.is_upper_triangular = properties.is_lower_triangular = True
    assert properties.is_diagonal is True
    assert properties.is_symmetric is False


def test_everything_holds_of_an_empty_matrix() -> None:
    properties = Properties((0, 0), "f8")
    properties.is_zero = True
    properties.has_unit_diagonal = True
    assert properties.is_zero is properties.has_unit_diagonal is True


@pytest.mark.parametrize("value", [1, "yes", 0.0, np.float64(1)])
def test_a_claim_is_a_truth_value(value: object) -> None:
    with pytest.raises(ConfigError, match="True, False, or None"):
        Properties((3, 3), "f8").is_zero = value  # type: ignore[assignment]


def test_misspelt_names_are_refused() -> None:
    properties = Properties((3, 3), "f8")
    with pytest.raises(AttributeError):
        properties.is_symetric = True  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="is_symmetric"):
        properties["is_symetric"] = True
    with pytest.raises(ConfigError):
        properties["is_symetric"]
    assert "is_symetric" not in properties


def test_flags_round_trip_and_layout() -> None:
    properties = Properties((3, 3), "f8")
    properties.is_diagonal = True
    properties.has_unit_diagonal = False
    again = Properties.from_flags(properties.flags, (3, 3), "f8")
    assert again == properties
    assert 0 <= properties.flags < 2**64
    assert len(PROPERTIES) <= 32
    for i, name in enumerate(PROPERTIES):
        assert bool(properties.flags >> 2 * i & 1) is (properties[name] is not None)
        assert bool(properties.flags >> 2 * i & 2) is (properties[name] is True)


@pytest.mark.parametrize("flags", [2, -1, 1 << 63, 1 << 2 * len(PROPERTIES)])
def test_flags_without_meaning_are_refused(flags: int) -> None:
    with pytest.raises(ConfigError, match="without meaning"):
        Properties.from_flags(flags, (3, 3), "f8")


@given(matrices(), st.data())
def test_json_round_trip(a: Array, data: st.DataObject) -> None:
    properties = Properties.from_flags(data.draw(claimed(a)), a.shape, a.dtype)
    text = json.dumps(properties.to_json())
    assert Properties.from_json(json.loads(text), a.shape, a.dtype) == properties
    copy = properties.copy()
    assert copy == properties
    copy.clear()
    assert Properties.from_json({}, a.shape, a.dtype) == copy


def test_json_of_others() -> None:
    assert Properties.from_json({"is_zero": True, "is_toeplitz": True}, (2, 2), "f8").to_json() == {"is_zero": True}
    for hostile in ({"is_zero": "true"}, {"is_zero": 1}, {"is_zero": True, "is_unitary": True}):
        with pytest.raises(ConfigError):
            Properties.from_json(hostile, (2, 2), "f8")
    with pytest.raises(ShapeError):
        Properties.from_json({"is_symmetric": True}, (2, 3), "f8")


def test_mapping_of_what_is_known() -> None:
    properties = Properties((3, 3), "c16")
    properties.is_hermitian = True
    assert dict(properties) == {"is_hermitian": True}
    assert list(properties) == ["is_hermitian"]
    assert "is_hermitian" in properties
    assert "is_unitary" not in properties
    assert repr(properties) == "Properties(is_hermitian=True)"


def test_every_property_is_an_attribute() -> None:
    for name in PROPERTIES:
        assert getattr(Properties, name).name == name
        assert PROPERTIES[name] in getattr(Properties, name).__doc__
