"""How long a case takes, where the time goes, and how far that is from what the machine can do."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from omnet_monai import __version__
from omnet_monai.cost import machine
from omnet_monai.demo import bundle_root, inference_config
from omnet_monai.files import sha256, whole_file
from omnet_monai.finding import find_cases
from omnet_monai.inferers import AutocastInferer, has_bfloat16
from omnet_monai.machine import convolution_seconds, machine_rates, seconds
from omnet_monai.networks.folding import LAYOUTS, folded
from omnet_monai.regions import REGIONS
from omnet_monai.report import format_table
from omnet_monai.rivals import Rival, every_window, own_paths, rivals
from omnet_monai.timing import Volume, race
from omnet_monai.weights import load_weights

__all__ = ["benchmark"]


def benchmark(
    cases: str,
    output_dir: str = "benchmark",
    repeats: int = 3,
    limit: int = 0,
    only: str = "",
    exact: bool = False,
    sizes: tuple[int, ...] = (1024, 2048, 4096, 8192),
    bundle: str = "",
    **overrides: Any,
) -> None:
    """
    Time the inference of a bundle on real cases beside other paths and networks, and the machine beside all of them.

    Rows take turns, so that a disturbance meets them all; a row's figure is the median over turns, the mean over cases.
    Writes ``benchmark.json`` with every single time, and ``benchmark.png``, Dice against seconds if there are labels.

    Args:
        cases: folder of cases in any known layout.
        output_dir: where to write.
        repeats: how many turns; the slowest rows take one.
        limit: how many cases to take, 0 for all.
        only: rows to run, parts of their names separated by ";", by default all.
        exact: compare the default, and it without its search, to every window in float64, which takes minutes per case.
        sizes: sides of the matrices whose products tell the machine's rate.
        bundle: root of the bundle, by default the current folder if it is one, or that beside this package.
        overrides: ids of inference.json to override.

    Raises:
        ValueError: if there is no case, or no row has such a name.
    """
    out, root = Path(output_dir), bundle_root(bundle)
    parser = inference_config(root, {"output_dir": str(out / "maps"), **overrides})
    device, network = parser.get_parsed_content("device"), parser.get_parsed_content("network").eval()
    weights = str(parser.get_parsed_content("checkpoint_path"))
    load_weights(network, weights)
    default = parser.get_parsed_content("inferer")
    rows = _chosen(own_paths(network, default) + rivals(network, default), only)
    found = find_cases(cases)[0][: limit or None]
    if not found or not rows:
        raise ValueError(f"a benchmark needs cases and rows, got {len(found)} cases in {cases} and rows {only!r}")

    print(f"machine: {machine()}", flush=True)
    result: dict[str, Any] = {
        "machine": machine(),
        "command": shlex.join(["python", "-m", "omnet_monai", *sys.argv[1:]]),
        "version": __version__,
        "weights_sha256": sha256(weights),
        "rates": machine_rates(device, sizes),
        "start": _start_seconds(root, overrides),
    }
    volumes = [Volume(case, parser, device) for case in found]
    result["rows"] = race(rows, volumes, repeats)
    _write(result, out)  # what comes next may fail, after hours
    result["stages"] = {volume.name: volume.stages(default, network, repeats) for volume in volumes}
    result["convolutions"] = _convolutions(network, default, device)
    if exact:
        compared, result["exactness"] = {"the default": default, "every window": every_window(default)}, {}
        for volume in volumes:
            with torch.inference_mode():
                result["exactness"][volume.name] = volume.exactness(compared, network)
            print(f"{volume.name}: compared to float64", flush=True)
            _write(result, out)
    _write(result, out)
    _plot(result["rows"], out / "benchmark.png")
    print(f"{_text(result)}\n\nevery single time: {out / 'benchmark.json'}")


def _chosen(rows: list[Rival], only: str) -> list[Rival]:
    """Choose the rows whose names hold one of the parts, which semicolons separate or end; without a part all."""
    parts = [part.strip() for part in only.split(";") if part.strip()]
    return [row for row in rows if not parts or any(part in row.name for part in parts)]


def _write(result: dict[str, Any], out: Path) -> None:
    with whole_file(out / "benchmark.json") as file:
        file.write_text(json.dumps(result, indent=1))


def _start_seconds(root: Path, overrides: dict[str, Any]) -> dict[str, float]:
    """Seconds of a new process for its imports, and for the network with its weights."""
    code = (
        "import time; start = time.perf_counter(); from monai.bundle import ConfigParser;"
        "import omnet_monai.networks, omnet_monai.loading; from omnet_monai.weights import load_weights;"
        "imported = time.perf_counter(); parser = ConfigParser();"
        f"parser.read_config({str(root / 'configs' / 'inference.json')!r});"
        f"parser['bundle_root'] = {str(root)!r}; parser.update({overrides!r});"
        "network = parser.get_parsed_content('network');"
        "load_weights(network, parser.get_parsed_content('checkpoint_path'));"
        "print(imported - start, time.perf_counter() - imported)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    imports, model = map(float, printed.split()[-2:])
    return {"imports": imports, "model": model}


@torch.inference_mode()
def _convolutions(network: torch.nn.Module, default: AutocastInferer, device: torch.device) -> dict[str, Any]:
    """Time a batch of windows through the network beside each of its convolutions alone."""
    amp = default.amp and has_bfloat16(device.type)
    fast = folded(network, torch.bfloat16 if amp else None)
    sliding: Any = default.inferer
    windows = torch.randn(sliding.sw_batch_size, 4, *sliding.roi_size, device=device)
    windows = windows.contiguous(memory_format=LAYOUTS[windows.dim()])
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        whole = seconds(lambda: fast(windows), device)
        layers = convolution_seconds(network, windows)
    return {"network": whole, "alone": sum(layer["times"] * layer["seconds"] for layer in layers), "layers": layers}


def _plot(rows: dict[str, Any], path: Path) -> None:
    """Draw Dice over the regions against seconds, both the mean over cases, for rows that were scored."""
    scored = {name: cases for name, cases in rows.items() if all(entry.get("truth") for entry in cases.values())}
    if not scored:
        return
    from matplotlib.figure import Figure  # which takes most of a second that no other verb needs

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, cases in scored.items():
        took = mean(median(entry["seconds"]) for entry in cases.values())
        score = mean(mean(entry["truth"]) for entry in cases.values())
        axes.semilogx(took, score, "o", label=f"{name} ({took:.1f} s)")
    axes.set(xlabel="seconds per case", ylabel="Dice, mean of WT, TC, ET", title="Inference: accuracy against time")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
    with whole_file(path) as file:
        figure.savefig(file, dpi=120)


def _text(result: dict[str, Any]) -> str:
    tables = [_rows_table(result["rows"]), *_stages(result["stages"])]
    convolutions = result["convolutions"]
    layers = convolutions["layers"]
    products = [rate for rates in result["rates"]["matmul"].values() for rate in rates.values()]
    best = max(*products, *(layer["flops"] / layer["seconds"] / 1e12 for layer in layers))
    lines = [
        [f"{layer['kind']} {layer['in']}-{layer['out']}", "x".join(map(str, layer["input"])), layer["times"]]
        for layer in layers
    ]
    for line, layer in zip(lines, layers, strict=True):
        line += [layer["flops"] / layer["seconds"] / 1e12, 1e3 * layer["seconds"]]
    tables.append(format_table(["convolution alone", "input", "times", "TFLOP/s", "ms"], lines))
    flops = sum(layer["times"] * layer["flops"] for layer in layers)
    tables.append(
        f"a batch of windows: {1e3 * convolutions['network']:.1f} ms, its convolutions alone "
        f"{1e3 * convolutions['alone']:.1f} ms: {convolutions['network'] / convolutions['alone']:.2f} times; "
        f"{flops / convolutions['network'] / 1e12:.2f} TFLOP/s of {best:.2f}, the fastest rate here\n"
        f"copy: {result['rates']['copy']:.1f} GB/s; imports {result['start']['imports']:.2f} s, "
        f"network and weights {result['start']['model']:.2f} s"
    )
    if "exactness" in result:
        lines = [
            [f"{case}, {name}", exact["largest"], *exact["dice"]]
            for case, compared in result["exactness"].items()
            for name, exact in compared.items()
        ]
        tables.append(format_table(["against float64", "largest difference", *REGIONS], lines))
    return "\n\n".join(tables)


def _stages(stages: dict[str, dict[str, float | None]]) -> list[str]:
    """One line per case, then what there is beside inference."""
    lines = [[case, *("-" if t is None else t for t in times.values())] for case, times in stages.items()]
    tables = [format_table(["seconds", *next(iter(stages.values()))], lines)]
    timed: list[dict[str, Any]] = [times for times in stages.values() if times["files alone"]]
    others = [(times["whole case"] - times["inference"]) / times["files alone"] for times in timed]
    if others:
        tables.append(f"everything but inference: {mean(others):.1f} times what nibabel takes for the files alone")
    return tables


def _rows_table(rows: dict[str, Any]) -> str:
    """One line per row, the mean over cases; times also as a share of the first row's."""
    lines: list[list[str | float]] = []
    times = {name: mean(median(entry["seconds"]) for entry in cases.values()) for name, cases in rows.items()}
    for name, cases in rows.items():
        entries = list(cases.values())
        scores = [[entry[key] for entry in entries if entry.get(key)] for key in ("truth", "first")]
        truth, first = (np.mean(score, axis=0) if score else np.full(len(REGIONS), np.nan) for score in scores)
        share = times[name] / next(iter(times.values()))
        cost = mean(entry["flops"] for entry in entries) / 1e12
        memory = np.max([entry["memory"] or [np.nan] * 2 for entry in entries], axis=0)
        size = entries[0]["parameters"] / 1e6
        windows = mean(entry["windows"] for entry in entries)
        lines.append([name, times[name], share, size, windows, cost, *memory, *truth, min(first)])
    header = ["row", "seconds", "share", "M weights", "windows", "TFLOP", "peak GB", "of it added", *REGIONS]
    header.append("least Dice to first")
    return format_table(header, lines)
