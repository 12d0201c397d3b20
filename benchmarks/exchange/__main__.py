"""How fast the exchange is: against gloo's all_reduce, Flower's rounds, raw gRPC and raw TCP; up to 64 devices.

Everything is measured in one run on one machine, with processes on loopback; ratios are gloo's time over ours.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import matplotlib as mpl
import typer
from edgenewton.v1.codecs import CODEC_NUMBERS
from rich.console import Console

from benchmarks.exchange.flower import flower_round_times
from benchmarks.exchange.hidden import hidden_fraction
from benchmarks.exchange.ours import measure
from benchmarks.exchange.peers import gloo_times, quantile, raw_grpc_rate, raw_tcp_rate
from benchmarks.shared.results import FOLDER, markdown_table, save_results

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZES = {"4kB": 4_000, "400kB": 400_000, "4MB": 4_000_000, "40MB": 40_000_000}
DEVICES = (2, 4, 8, 16, 32, 64)
SCALE_SIZE = 100_000

console = Console(highlight=False)


@dataclass(frozen=True)
class Row:
    """One comparison."""

    members: int
    size: str
    codec: str
    gloo_ms: float
    ours_ms: float
    ours_p99_ms: float
    ratio: float
    coordinator_cpu_ms: float
    coordinator_peak_mib: float


def compare(members: int, size: str, codecs: list[str], steps: int | None) -> list[Row]:
    """Measure gloo and ours, one after the other, with the same members and bytes."""
    gloo = quantile(gloo_times(members, SIZES[size]), 0.5)
    rows = []
    for codec in codecs:
        ours = measure(members, SIZES[size], codec, steps=steps)
        median = quantile(ours.times, 0.5)
        rows.append(
            Row(
                members,
                size,
                codec,
                1e3 * gloo,
                1e3 * median,
                1e3 * quantile(ours.times, 0.99),
                gloo / median,
                1e3 * ours.coordinator_cpu_s,
                ours.coordinator_peak_mib,
            )
        )
        console.print(
            f"{members} members, {size:>5} {codec:>8}: gloo {1e3 * gloo:8.2f} ms, ours {1e3 * median:8.2f} ms"
        )
    return rows


def scale(devices: tuple[int, ...], steps: int) -> list[dict[str, Any]]:
    """Measure a step's latency with more and more devices; they are threads of one process."""
    rows = []
    for count in devices:
        ours = measure(count, SCALE_SIZE, threads=True, steps=steps)
        rows.append(
            {
                "devices": count,
                "as": "threads of one process",
                "bytes": SCALE_SIZE,
                "p50_ms": 1e3 * quantile(ours.times, 0.5),
                "p99_ms": 1e3 * quantile(ours.times, 0.99),
                "coordinator_cpu_ms": 1e3 * ours.coordinator_cpu_s,
                "coordinator_peak_mib": ours.coordinator_peak_mib,
            }
        )
        console.print(rows[-1])
    return rows


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Four members, three sizes, few steps.")] = False,
) -> None:
    """Measure, print, and write results and plot."""
    steps = 10 if quick else None
    rows: list[Row] = []
    for members in (4,) if quick else (2, 4):
        for size in ("4kB", "400kB", "40MB") if quick else SIZES:
            every = not quick and members == 4 and size == "4MB"
            rows += compare(members, size, list(CODEC_NUMBERS) if every else ["fp32", "bf16"], steps)
    scaling = scale((2, 8) if quick else DEVICES, 10 if quick else 50)
    rates = {"grpc_GB_s": raw_grpc_rate() / 1e9, "tcp_GB_s": raw_tcp_rate() / 1e9}
    console.print(f"raw loopback: gRPC {rates['grpc_GB_s']:.2f} GB/s each way, TCP {rates['tcp_GB_s']:.2f} GB/s")
    hidden = hidden_fraction(batches=5 if quick else 30)
    console.print(f"communication hidden behind backward: {hidden.fraction:.0%} of {hidden.alone_ms:.1f} ms")
    one_megabyte = 1e3 * quantile(measure(4, 1_000_000, steps=steps).times, 0.5)
    flower = {
        engine: 1e3 * quantile(flower_round_times(4, 1_000_000, supernodes=engine == "deployment"), 0.5)
        for engine in ("simulation", "deployment")
    }
    console.print(f"4 devices, 1 MB: ours {one_megabyte:.1f} ms; a Flower round {flower}")
    profiles = {size: measure(4, SIZES[size], profile=True, steps=10).profile for size in ("400kB", "40MB")}

    def ratio(size: str, codec: str) -> float:
        return next(row.ratio for row in rows if (row.members, row.size, row.codec) == (4, size, codec))

    headline = {
        "gloo_ratio_400kB_n4": ratio("400kB", "fp32"),
        "gloo_ratio_40MB_fp32_n4": ratio("40MB", "fp32"),
        "gloo_ratio_40MB_bf16_n4": ratio("40MB", "bf16"),
        "flower_deployment_ratio_1MB": flower["deployment"] / one_megabyte,
        "hidden_communication_fraction": hidden.fraction,
    }
    header = ["members", "size", "codec", "gloo ms", "ours ms", "p99 ms", "ratio", "coordinator CPU ms", "peak MiB"]
    print(
        markdown_table(
            header, [[v if isinstance(v, int | str) else f"{v:.2f}" for v in asdict(row).values()] for row in rows]
        )
    )
    console.print(headline)
    figures = {
        "quick": quick,
        "comparison": [asdict(row) for row in rows],
        "scaling": scaling,
        "raw_rates": rates,
        "hidden": asdict(hidden),
        "ours_1MB_ms": one_megabyte,
        "flower_round_1MB_ms": flower,
        "coordinator_profile": {size: text.splitlines() for size, text in profiles.items()},
    }
    console.print(f"results: {save_results('exchange', headline, figures)}")
    _plot(rows, scaling)


def _plot(rows: list[Row], scaling: list[dict[str, Any]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), dpi=110)
    four = [row for row in rows if row.members == 4]
    for codec, colour in (("fp32", "#0b6e4f"), ("bf16", "#4a6fa5")):
        of_codec = [row for row in four if row.codec == codec]
        sizes = [SIZES[row.size] for row in of_codec]
        left.loglog(sizes, [row.ours_ms for row in of_codec], "o-", color=colour, label=f"ours, {codec}")
    fp32 = [row for row in four if row.codec == "fp32"]
    left.loglog([SIZES[row.size] for row in fp32], [row.gloo_ms for row in fp32], "s--", color="#b5651d", label="gloo")
    left.set(xlabel="bytes of the gradients", ylabel="ms a step", title="4 devices, loopback")
    counts = [row["devices"] for row in scaling]
    right.loglog(counts, [row["p50_ms"] for row in scaling], "o-", color="#0b6e4f", label="median")
    right.loglog(counts, [row["p99_ms"] for row in scaling], "o--", color="#0b6e4f", label="p99")
    right.set_xticks(counts, [str(count) for count in counts])
    right.minorticks_off()
    right.set(xlabel="devices (threads)", ylabel="ms a step", title=f"{SCALE_SIZE // 1000} kB")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25, which="both")
    figure.tight_layout()
    figure.savefig(FOLDER / "exchange.png")
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
