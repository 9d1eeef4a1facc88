"""A Cholesky factorisation onto disk on a GPU, larger than RAM and VRAM: time over what the plan's bytes take on this disk.

``pycauset stress --op cholesky`` with a report: one triangle of the covariance matrix of n random points is written to disk tile
by tile and factored there in place, and two checks read the factor back. The disk's bandwidth is measured by the chunk reads and
writes that the factorisation itself uses, once before and once after. Where cgroups can be written, the process first puts itself
under a memory limit of ``--ram``, page cache included; ``--memory`` leaves the rest of it to the interpreter and CUDA.
"""

from __future__ import annotations

from gpu_matmul_disk import memory_cgroup
from report import Report, add_folder, gpu_or_exit, parser, warm_up, work_folder

from pycauset.units import format_bytes, parse_bytes

BAR, BAR_RESIDUAL = 1.5, 30.0


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--size", type=parse_bytes, default=parse_bytes("100GB"), help="bytes of all elements of the matrix")
    made.add_argument("--ram", type=parse_bytes, default=parse_bytes("16GB"), help="limit of the whole process")
    made.add_argument("--memory", default="14GB", help="limit given to the factorisation: --ram less interpreter and CUDA")
    made.add_argument("--gpu-memory", default="8GB")
    made.add_argument("--dtype", default="float64")
    add_folder(made)
    options = made.parse_args()
    if options.smoke:
        options.size, options.memory, options.gpu_memory = min(options.size, parse_bytes("60MB")), "1GB", "250MB"
    with work_folder(options.folder) as folder, memory_cgroup(options.ram) as limited:
        limits = f"RAM {format_bytes(options.ram)}, gpu_memory={options.gpu_memory}"
        report = Report(f"GPU, Cholesky factor of {format_bytes(options.size)} onto disk, {limits}", options, folder=folder)
        report.figure("RAM", limited)
        gpu_or_exit(report)
        from pycauset import cuda
        from pycauset.stress import stress
        from pycauset.stress_cholesky import CholeskyStressResult

        warm_up()
        with cuda.force_backend("gpu"):
            result = stress(
                options.size,
                options.memory,
                options.gpu_memory,
                op="cholesky",
                dtype=options.dtype,
                output=folder,
                progress=False,
            )
        assert isinstance(result, CholeskyStressResult)
        for name, value in result.rows():
            report.figure(name, value)
        report.bar("scaled residual", result.residual, BAR_RESIDUAL, at_least=False, exact=True)
        report.bar("scaled residual, sampled tiles", result.tile_residual, BAR_RESIDUAL, at_least=False, exact=True)
        report.bar("peak memory / limit", result.peak / result.limit, 1.0, at_least=False, exact=True)
        if result.gpu_peak is not None and result.gpu_measured is not None and result.gpu_limit is not None:
            peak = max(result.gpu_peak, result.gpu_measured)
            report.bar("peak GPU memory / limit", peak / result.gpu_limit, 1.0, at_least=False, exact=True)
        report.bar("time over planned disk bytes", result.seconds / result.disk_seconds, BAR, at_least=False)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
