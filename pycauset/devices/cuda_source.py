"""CUDA C for what no library offers: triangles, diagonals, copies. Compiled once per real type, by NVRTC through CuPy.

Tiles are row-major with ``ld`` elements between rows; an element is ``width`` reals, so that complex tiles need no code of
their own. Kernels that look at a tile write what they saw straight into page-locked host memory: a copy on the stream would
wait its turn behind downloads of whole tiles.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

__all__ = ["CLEAN", "NOT_POSITIVE", "UNKNOWN", "VERDICT", "ZERO_OR_NOT_FINITE", "cuda_function"]

#: What a kernel saw: ``kind``, the index of the first bad diagonal element, that element (two reals), and, for a pivot, its
#: value computed again from the matrix's diagonal and the row of the factor.
VERDICT: Final = np.dtype([("kind", "<i8"), ("index", "<i8"), ("real", "<f8"), ("imag", "<f8"), ("again", "<f8")])
UNKNOWN, CLEAN, NOT_POSITIVE, ZERO_OR_NOT_FINITE = -1, 0, 1, 2

SOURCE: Final = r"""
struct Verdict { long long kind, index; double real, imag, again; };

// The smallest of the block's values, in every thread; 256 threads.
__device__ long long smallest(long long mine)
{
    __shared__ long long all[256];
    all[threadIdx.x] = mine;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && all[threadIdx.x + half] < all[threadIdx.x])
            all[threadIdx.x] = all[threadIdx.x + half];
    }
    __syncthreads();
    return all[0];
}

// The sum of the block's values, in thread 0, always in the same order; 256 threads.
__device__ double total(double mine)
{
    __shared__ double all[256];
    all[threadIdx.x] = mine;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];
    }
    return all[0];
}

// out = real parts of the diagonal; imaginary parts, which a Hermitian matrix has none of, become zero.
extern "C" __global__ void take_diagonal(REAL* a, long long n, long long ld, int width, REAL* out)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    REAL* x = a + (i * ld + i) * width;
    out[i] = x[0];
    if (width == 2) x[1] = 0;
}

// What came of a Cholesky factorisation; one block of 256 threads. `before` is the diagonal as it was, `info` cuSOLVER's.
extern "C" __global__ void judge_pivots(const REAL* c, long long n, long long ld, int width, int lower,
                                        const REAL* before, const int* info, Verdict* verdict)
{
    const long long end = *info > 0 ? *info - 1 : n;
    long long mine = end;
    for (long long i = threadIdx.x; i < end && mine == end; i += 256) {
        const double d = c[(i * ld + i) * width];
        if (!(isfinite(d) && d > 0)) mine = i;
    }
    const long long pivot = smallest(mine);
    double squares = 0;
    if (pivot < n)
        for (long long k = threadIdx.x; k < pivot; k += 256) {
            const REAL* x = c + (lower ? pivot * ld + k : k * ld + pivot) * width;
            for (int w = 0; w < width; ++w) squares += (double)x[w] * x[w];
        }
    squares = total(squares);
    if (threadIdx.x == 0) {
        verdict->index = pivot;
        verdict->real = pivot < n ? (double)c[(pivot * ld + pivot) * width] : 0;
        verdict->imag = 0;
        verdict->again = pivot < n ? before[pivot] - squares : 0;
        verdict->kind = pivot < n ? 1 : 0;
        __threadfence_system();
    }
}

// The first diagonal element that is zero or, unless zeros_only, not finite; one block of 256 threads.
extern "C" __global__ void judge_diagonal(const REAL* a, long long n, long long ld, int width, int zeros_only, Verdict* verdict)
{
    long long mine = n;
    for (long long i = threadIdx.x; i < n && mine == n; i += 256) {
        const REAL* x = a + (i * ld + i) * width;
        const double re = x[0], im = width == 2 ? (double)x[1] : 0;
        if ((re == 0 && im == 0) || (!zeros_only && !(isfinite(re) && isfinite(im)))) mine = i;
    }
    const long long index = smallest(mine);
    if (threadIdx.x == 0) {
        const REAL* x = a + (index * ld + index) * width;
        verdict->index = index;
        verdict->real = index < n ? (double)x[0] : 0;
        verdict->imag = index < n && width == 2 ? (double)x[1] : 0;
        verdict->again = 0;
        verdict->kind = index < n ? 2 : 0;
        __threadfence_system();
    }
}

// The kernels below take blocks of 32 x 8 threads, each block a square of 32 x 32 elements.

// Zero what is not in the lower (or upper) triangle.
extern "C" __global__ void clear_triangle(REAL* c, long long n, long long ld, int width, int lower)
{
    const long long column = 32LL * blockIdx.x + threadIdx.x;
    for (int y = threadIdx.y; y < 32; y += 8) {
        const long long row = 32LL * blockIdx.y + y;
        if (row < n && column < n && (lower ? column > row : column < row))
            for (int w = 0; w < width; ++w) c[(row * ld + column) * width + w] = 0;
    }
}

// c = (re + i im) I.
extern "C" __global__ void fill_identity(REAL* c, long long rows, long long cols, long long ld, int width, double re, double im)
{
    const long long column = 32LL * blockIdx.x + threadIdx.x;
    for (int y = threadIdx.y; y < 32; y += 8) {
        const long long row = 32LL * blockIdx.y + y;
        if (row < rows && column < cols) {
            REAL* x = c + (row * ld + column) * width;
            x[0] = row == column ? (REAL)re : 0;
            if (width == 2) x[1] = row == column ? (REAL)im : 0;
        }
    }
}

// c = (re + i im) op(a), of which part 0 (all), 1 (lower) or 2 (upper triangle) is kept; the rest of a is not read.
extern "C" __global__ void copy_part(const REAL* a, long long lda, REAL* c, long long rows, long long cols, long long ldc,
                                     int width, int transposed, int conjugated, int part, double re, double im)
{
    __shared__ REAL square[2][32][33];
    const long long first_row = 32LL * blockIdx.y, first_column = 32LL * blockIdx.x, column = first_column + threadIdx.x;
    if (transposed) {
        for (int y = threadIdx.y; y < 32; y += 8) {
            const long long i = first_column + y, j = first_row + threadIdx.x;
            if (i < cols && j < rows)
                for (int w = 0; w < width; ++w) square[w][y][threadIdx.x] = a[(i * lda + j) * width + w];
        }
        __syncthreads();
    }
    for (int y = threadIdx.y; y < 32; y += 8) {
        const long long row = first_row + y;
        if (row >= rows || column >= cols) continue;
        REAL u = 0, v = 0;
        if ((re != 0 || im != 0) && (part == 0 || (part == 1 ? column <= row : column >= row))) {
            const REAL* x = a + (row * lda + column) * width;
            u = transposed ? square[0][threadIdx.x][y] : x[0];
            if (width == 2) v = transposed ? square[1][threadIdx.x][y] : x[1];
            if (conjugated) v = -v;
            if (im != 0) {
                const REAL s = (REAL)re, t = (REAL)im, w = u * s - v * t;
                v = u * t + v * s;
                u = w;
            } else if (re != 1) {
                u *= (REAL)re;
                v *= (REAL)re;
            }
        }
        REAL* z = c + (row * ldc + column) * width;
        z[0] = u;
        if (width == 2) z[1] = v;
    }
}

// Copy the lower triangle of a square tile over the upper one, conjugated or not.
extern "C" __global__ void mirror_lower(REAL* c, long long n, long long ld, int width, int conjugated)
{
    __shared__ REAL square[2][32][33];
    if (blockIdx.x < blockIdx.y) return;  // a block writes its own square, above the diagonal or on it
    const long long first_row = 32LL * blockIdx.y, first_column = 32LL * blockIdx.x, column = first_column + threadIdx.x;
    for (int y = threadIdx.y; y < 32; y += 8) {
        const long long i = first_column + y, j = first_row + threadIdx.x;
        if (i < n && j < n && j < i)
            for (int w = 0; w < width; ++w) square[w][y][threadIdx.x] = c[(i * ld + j) * width + w];
    }
    __syncthreads();
    for (int y = threadIdx.y; y < 32; y += 8) {
        const long long row = first_row + y;
        if (row >= n || column >= n || column < row) continue;
        REAL* z = c + (row * ld + column) * width;
        if (column == row) {  // what HERK leaves real is so after any other update too
            if (conjugated && width == 2) z[1] = 0;
            continue;
        }
        z[0] = square[0][threadIdx.x][y];
        if (width == 2) z[1] = conjugated ? -square[1][threadIdx.x][y] : square[1][threadIdx.x][y];
    }
}
"""


@functools.cache
def cuda_function(name: str, real: str) -> Any:
    """A kernel for ``real`` "float" or "double", called as ``f(grid, block, arguments)`` on the current stream."""
    return _module(real).get_function(name)


@functools.cache
def _module(real: str) -> Any:
    import cupy

    return cupy.RawModule(code=SOURCE, options=(f"-DREAL={real}",))
