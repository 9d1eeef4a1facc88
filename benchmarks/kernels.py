"""Rates of the kernels that factorisations and solves are made of, as fractions of gemm's, on tiles of several orders.

Every device of the machine takes its turn; kernels alternate with gemm. Operands are refreshed outside the timed part. On a
GPU a kernel is timed from its launch to the end of its stream; its workspace is printed too. The bar holds for the CPU, at
the largest order: below it a factorisation spends its time elsewhere than in products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from report import Report, alternate, parser

from pycauset import devices
from pycauset.units import format_bytes, format_flops

BARS = {"rank_k": 0.7, "trsm": 0.7, "trmm": 0.7, "potrf": 0.5}


def kernels(n: int) -> dict[str, tuple[float, list[str], str, tuple[Any, ...]]]:
    """Operations, what is read, what is written from what, and parameters, for each kernel on tiles of order ``n``."""
    return {
        "gemm": (2.0 * n**3, ["general", "general"], "general", (-1.0, 1.0, "N", "T")),
        "rank_k": (1.0 * n**3, ["general"], "positive", (-1.0, 1.0, "N", False, False)),
        "trsm": (1.0 * n**3, ["triangle"], "general", ("R", "L", "T", False, 1.0)),
        "trmm": (1.0 * n**3, ["triangle", "general"], "general", ("L", "L", "N", False, 1.0)),
        "potrf": (n**3 / 3.0, [], "positive", (0, True)),
        "trtri": (n**3 / 3.0, [], "triangle", ("L", False, 0)),
    }


def operands(n: int, dtype: str) -> dict[str, Any]:
    general = (np.random.default_rng(0).standard_normal((n, n)) / n**0.5).astype(dtype)
    identity = np.eye(n, dtype=dtype)
    return {"general": general, "positive": general @ general.T + identity, "triangle": np.tril(general) / 2 + 2 * identity}


def on_cpu(device: Any, n: int, dtype: str) -> dict[str, Callable[[], float]]:
    arrays = operands(n, dtype)
    target = np.empty((n, n), dtype)

    def timed(name: str, reads: list[str], source: str, params: tuple[Any, ...]) -> float:
        np.copyto(target, arrays[source])
        start = time.perf_counter()
        device.kernels[name]([arrays[read] for read in reads] or [target], [target], params, None)
        return time.perf_counter() - start

    return {name: lambda name=name, rest=rest: timed(name, *rest) for name, (_, *rest) in kernels(n).items()}


def on_gpu(device: Any, n: int, dtype: str) -> dict[str, Callable[[], float]]:
    from pycauset.devices.cupy import TileView

    runtime, lane = device.runtime, device.plain_lane("compute")
    views = {}
    for name, array in {**operands(n, dtype), "target": np.empty((n, n), dtype)}.items():
        address = runtime.malloc(array.nbytes)
        runtime.memcpy(address, array.ctypes.data, array.nbytes, 1)
        views[name] = TileView(address, n, n, n, array.dtype, dtype)
    runtime.deviceSynchronize()

    def timed(name: str, reads: list[str], source: str, params: tuple[Any, ...]) -> float:
        target = views["target"]
        device.kernels["copy"]([views[source]], [target], (1.0, "N", "full"), lane)
        device.synchronize()
        start = time.perf_counter()
        check = device.kernels[name]([views[read] for read in reads] or [target], [target], params, lane)
        device.synchronize()
        seconds = time.perf_counter() - start
        if check is not None:
            check()
        return seconds

    def free() -> float:
        for view in views.values():
            runtime.free(view.address)
        return 0.0

    calls = {name: lambda name=name, rest=rest: timed(name, *rest) for name, (_, *rest) in kernels(n).items()}
    return {**calls, "free": free}


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--orders", type=int, nargs="+", default=[1024, 2048, 4096])
    made.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    made.add_argument("--repeats", type=int, default=7)
    options = made.parse_args()
    if options.smoke:
        options.orders, options.repeats = [96], 2
    report = Report(f"kernels on tiles of order {', '.join(map(str, options.orders))}, {options.dtype}", options)
    for device in filter(None, (devices.cpu(), devices.gpu())):
        for n in options.orders:
            calls = (on_cpu if device.unified else on_gpu)(device, n, options.dtype)
            free = calls.pop("free", None)
            for call in calls.values():
                call()
            samples = alternate(calls, options.repeats)
            if free is not None:
                free()
            rates = {name: kernels(n)[name][0] / sample.median for name, sample in samples.items()}
            report.line(f"{device.name}, order {n}")
            for name, sample in samples.items():
                fraction = f"{rates[name] / rates['gemm']:.2f} of gemm"
                report.figure(f"  {name}", f"{format_flops(rates[name])}, {fraction}, {sample}")
            for name in ("potrf", "trtri"):
                if not device.unified:
                    report.figure(f"  workspace of {name}", format_bytes(device.workspace_bytes(name, n, options.dtype)))
            if device.unified and n == max(options.orders):
                for name, bar in BARS.items():
                    report.bar(f"{name} to gemm, order {n}", rates[name] / rates["gemm"], bar, at_least=True, digits=2)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
