"""The CPU's kernels against the oracle that every device answers to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycauset.devices.numpy import NumpyDevice
from tests.devices import kernel_cases as cases

KERNELS = NumpyDevice().kernels
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(cases.DTYPES)
orders = st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 300]))
flags = st.sampled_from(cases.FLAGS)
alphas = st.sampled_from([1.0, -1.0, 0.5, 2 - 1j])
pads = st.integers(0, 5)


def run(name, reads, writes, params):
    assert KERNELS[name]([t.array for t in reads], [t.array for t in writes], params, None) is None


@given(
    orders,
    st.integers(1, 40),
    dtypes,
    st.sampled_from("TH"),
    st.sampled_from("LU"),
    st.sampled_from([0.0, 1.0, -2.0]),
    pads,
    seeds,
)
def test_rank_k(n, k, dtype, op, uplo, beta, pad, seed):
    cases.rank_k_updates(run, np.random.default_rng(seed), n, k, dtype, op, uplo, beta, pad)


@given(
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(1, 30),
    dtypes,
    st.sampled_from("NTH"),
    st.sampled_from([0.0, 1.0]),
    pads,
    seeds,
)
def test_gemm_of_a_part(m, n, k, dtype, op, beta, pad, seed):
    cases.gemm_multiplies_parts(run, np.random.default_rng(seed), m, n, k, dtype, op, beta, pad)


@given(orders, dtypes, st.booleans(), pads, seeds)
def test_potrf(n, dtype, lower, pad, seed):
    cases.potrf_factors(run, np.random.default_rng(seed), n, dtype, lower, pad)


@pytest.mark.parametrize("what", ["negative", "zero", "nan", "inf", "row nan", "row inf"])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("n", "pivot"), [(9, 1), (9, 8), (300, 170), (700, 640)])
def test_potrf_refuses(what, lower, dtype, n, pivot):
    cases.potrf_refuses(run, np.random.default_rng(), n, dtype, lower, pivot, what)


@pytest.mark.parametrize("what", ["negative", "zero", "nan", "inf"])
def test_potrf_refuses_the_first_pivot(what):
    cases.potrf_refuses(run, np.random.default_rng(), 5, "float64", True, 0, what)


def test_potrf_names_the_first_of_several_bad_pivots():
    a = np.eye(20)
    a[12, 12], a[7, 7] = -1, np.nan
    with pytest.raises(cases.NotPositiveDefiniteError) as caught:
        KERNELS["potrf"]([a], [a], (0, True), None)
    assert caught.value.pivot == 7


@given(orders, st.integers(1, 40), dtypes, flags, alphas, pads, seeds)
def test_trsm(m, n, dtype, how, alpha, pad, seed):
    cases.trsm_solves(run, np.random.default_rng(seed), m, n, dtype, how, alpha, pad)


@given(orders, st.integers(1, 40), dtypes, flags, alphas, pads, seeds)
def test_trmm(m, n, dtype, how, alpha, pad, seed):
    cases.trmm_multiplies(run, np.random.default_rng(seed), m, n, dtype, how, alpha, pad)


@pytest.mark.parametrize("name", ["trsm", "trmm"])
def test_alpha_of_zero_gives_zeros(name):
    t, b = np.eye(4), np.full((4, 3), np.nan)
    c = b if name == "trsm" else np.full((4, 3), np.nan)
    KERNELS[name]([t, b], [c], ("L", "L", "N", False, 0.0), None)
    assert not c.any()


@given(orders, dtypes, st.sampled_from("LU"), st.booleans(), pads, seeds)
def test_trtri(n, dtype, uplo, unit, pad, seed):
    cases.trtri_inverts(run, np.random.default_rng(seed), n, dtype, uplo, unit, pad)


@pytest.mark.parametrize("n", [2, 30, 300])
@pytest.mark.parametrize("uplo", ["L", "U"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_trtri_refuses_zeros(n, uplo, dtype):
    cases.trtri_refuses_zeros(run, np.random.default_rng(), n, dtype, uplo)


@pytest.mark.parametrize("what", [0.0, -0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_check_diagonal(what, dtype):
    cases.diagonal_is_checked(run, np.random.default_rng(), 30, dtype, what)


@given(orders, orders, dtypes, st.sampled_from("NTHC"), st.sampled_from(["full", "lower", "upper"]),
       st.sampled_from([0.0, 1.0, -1.0, 2 - 1j]), pads, seeds)  # fmt: skip
def test_copy(m, n, dtype, op, part, alpha, pad, seed):
    cases.copies(run, np.random.default_rng(seed), m, n, dtype, op, part, alpha, pad)


@given(orders, orders, dtypes, st.sampled_from([0.0, 1.0, 2 - 1j]), pads, seeds)
def test_fill_identity(m, n, dtype, value, pad, seed):
    cases.fills_identity(run, np.random.default_rng(seed), m, n, dtype, value, pad)
