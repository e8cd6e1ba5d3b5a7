"""
Segment corrupted cases, and count how each ends, in the folder of a clone.

  python benchmarks/fuzz_segment.py CASE OUTPUT --number 200 --seed 0

A case is cut to 64x64x64 voxels, spoiled in one of the ways below and segmented by a small network with random weights,
all in one process; the first few are segmented again, each by a command of its own. Each must end in a label map or in
one line that says what is wrong with which file, and leave nothing half done.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fire
import nibabel
import numpy as np

from omnet_monai.datalist import read_images
from omnet_monai.demo import bundle_root
from omnet_monai.loading import LoadCased
from omnet_monai.networks import OMNet
from omnet_monai.regions import SEQUENCES
from omnet_monai.segment import segment
from omnet_monai.weights import ModelFile

SIZE = 64
FEATURES = (2, 2, 4, 4)
SECONDS = 300
"""After which a command counts as hanging, which ends the run."""


def main(case: str, output: str, number: int = 200, seed: int = 0, commands: int = 10) -> None:
    """
    Spoil and segment, and fail if a case ends in another way than those allowed.

    Args:
        case: folder of one case.
        output: folder for everything, which must not exist.
        number: how many cases to spoil.
        seed: of what is spoiled and how.
        commands: how many of them to segment on the command line too.
    """
    folder, rng = Path(output), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    image, kinds = _crop(case), {}
    for n in range(number):
        kind = list(SPOILERS)[n % len(SPOILERS)]
        kinds[f"case{n:03}"] = kind
        _write(folder / "cases" / f"case{n:03}", f"case{n:03}", image, kind, rng)
    bundle = _small_bundle(folder / "bundle")
    try:
        segment(str(folder / "cases"), output=str(folder / "out"), bundle=str(bundle))
    except ValueError as error:
        print(error)
    rows = {row["case"]: row for row in json.loads((folder / "out" / "segmentation.json").read_text())["cases"]}
    wrong, ends = [], Counter[str]()
    for name, kind in kinds.items():
        row, label = rows.get(name), folder / "out" / f"{name}_seg.nii.gz"
        if row is None:  # a case whose every name was spoiled cannot be found
            ends[f"{kind}: not found"] += 1
            continue
        ends[
            f"{kind}: {'refused' if row['error'] else 'segmented, warned of' if row['warnings'] else 'segmented'}"
        ] += 1
        if label.exists() == bool(row["error"]) or "\n" in row["error"] or "Traceback" in row["error"]:
            wrong.append(f"{name} ({kind}): {row['error']}")
        if row["error"] and name not in row["error"] and not row["error"].startswith("missing "):
            wrong.append(f"{name} ({kind}) is refused without its file: {row['error']}")
    wrong += [f"left behind: {path}" for path in (folder / "out").rglob(".*")]
    alone = [name for name in kinds if name in rows]
    wrong += [problem for name in alone[:commands] for problem in _on_the_command_line(name, folder, rows[name])]
    print(*(f"{count:4} {end}" for end, count in sorted(ends.items())), sep="\n")
    if wrong:
        raise SystemExit("\n".join(wrong))


def _on_the_command_line(name: str, folder: Path, row: dict[str, Any]) -> list[str]:
    """Segment one case by a command, and list what it does otherwise than it did among the others."""
    alone = folder / "alone" / name
    segment_it = [sys.executable, "-m", "omnet_monai", "segment", str(folder / "cases" / name)]
    command = [*segment_it, "--output", str(alone), "--bundle", str(folder / "bundle")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    print(f"{name}: exit status {result.returncode}", *result.stderr.strip().splitlines()[-1:], sep=": ")
    problems = {
        f"exit status {result.returncode}": result.returncode != int(bool(row["error"])),
        "a traceback": "Traceback" in result.stderr + result.stdout,
        "half a result": any(alone.rglob(".*")) or (alone / f"{name}_seg.nii.gz").exists() == bool(row["error"]),
    }
    return [f"{name} on the command line: {problem}" for problem, found in problems.items() if found]


def _crop(case: str) -> np.ndarray:
    """Cut the middle of the brain out of a case."""
    data: dict[Any, Any] = read_images(case)[0]
    image = LoadCased()(data)["image"].numpy()
    middle = np.argwhere(image.any(0)).mean(0).astype(int)
    return image[(slice(None), *(slice(m - SIZE // 2, m + SIZE // 2) for m in middle))].astype(np.int16)


def _small_bundle(root: Path) -> Path:
    shutil.copytree(bundle_root() / "configs", root / "configs")
    config = json.loads((root / "configs" / "inference.json").read_text())
    config["network_def"]["features"] = FEATURES
    config["cluster_peak"] = 0  # random weights are certain nowhere
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    ModelFile(root / "models" / "model.pt", OMNet(class_counts=(4, 4, 2), features=FEATURES)).save()
    return root


def _write(folder: Path, name: str, image: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Write a case with one of its four files spoiled."""
    folder.mkdir(parents=True)
    spoiled = int(rng.integers(len(SEQUENCES)))
    for channel, (sequence, volume) in enumerate(zip(SEQUENCES, image, strict=True)):
        file = folder / f"{name}_{sequence}.nii.gz"
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        if channel != spoiled:
            nibabel.save(nibabel.Nifti1Image(volume, affine), file)
            continue
        SPOILERS[kind](volume.copy(), affine, file, rng)


def _save(volume: np.ndarray, affine: np.ndarray, file: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, affine), file)


def _spoil_bytes(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    _save(volume, affine, file)
    content = bytearray(file.read_bytes())
    for place in rng.integers(len(content), size=8):
        content[place] = rng.integers(256)
    file.write_bytes(bytes(content))


def _truncate(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    _save(volume, affine, file)
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))])


def _spoil_header(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    """Change bytes of the header of a file that is not compressed."""
    plain = file.with_suffix("")
    _save(volume, affine, plain)
    content = bytearray(plain.read_bytes())
    for place in rng.integers(348, size=4):
        content[place] = rng.integers(256)
    plain.write_bytes(bytes(content))


def _change_type(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    kinds = [np.uint8, np.float32, np.float64, np.int32, np.complex64, np.uint16]
    _save(volume.astype(kinds[rng.integers(len(kinds))]), affine, file)


def _change_shape(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    shapes = [volume[:-1], volume[..., 0], volume[..., None], np.stack([volume] * 3, -1), volume[:1], volume[:0]]
    _save(shapes[rng.integers(len(shapes))], affine, file)


def _change_affine(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    changed = affine.copy()
    changed[rng.integers(4), rng.integers(4)] = [0.0, np.nan, 1e6, -1.0, 3.0][rng.integers(5)]
    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_sform(changed, code=1)
    image.header.set_qform(affine, code=0)
    nibabel.Nifti1Image(volume, None, image.header).to_filename(file)


def _change_codes(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    """Change what the header's codes say of grid and units, and put a label map of odd codes beside."""
    image = nibabel.Nifti1Image(volume, affine)
    sform, qform = (int(code) for code in rng.integers(5, size=2))
    image.header.set_sform(affine, code=sform)
    image.header.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]) if sform else affine, code=qform)
    image.header["xyzt_units"] = rng.integers(64)
    nibabel.Nifti1Image(volume, None, image.header).to_filename(file)
    label = file.with_name(f"{file.parent.name}_seg.nii.gz")
    _save(rng.choice(np.array([-1, 5, 77, 250], np.int16), volume.shape), affine, label)


def _spoil_values(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    values = volume.astype(np.float32)
    values[tuple(rng.integers(SIZE, size=(3, 50)))] = [np.nan, np.inf, -np.inf, 1e30][rng.integers(4)]
    if rng.integers(2):
        values = values.astype(np.float64)
        values[0, 0, 0] = 1e39  # beyond float32
    _save(values, affine, file)


def _rescale(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    values = volume.astype(np.float32)
    changed = [np.zeros_like(values), np.ones_like(values), -values, values / 1e30, np.sign(values), values - 500]
    _save(changed[rng.integers(len(changed))], affine, file)


def _rename(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    names = ["t3.nii.gz", f"{file.name}.bak", f".{file.name}", file.name.replace("_", " "), file.name.upper()]
    other = file.with_name(names[rng.integers(len(names))])
    _save(volume, affine, file)
    file.rename(other)


def _replace(volume: np.ndarray, affine: np.ndarray, file: Path, rng: np.random.Generator) -> None:
    """Put something else in the place of a file: text, nothing, a folder, a link to nowhere."""
    match rng.integers(4):
        case 0:
            file.write_text("this is no image")
        case 1:
            file.touch()
        case 2:
            file.mkdir()
        case _:
            file.symlink_to(file.with_name("nowhere"))


SPOILERS = {
    "bytes": _spoil_bytes,
    "truncated": _truncate,
    "header": _spoil_header,
    "type": _change_type,
    "shape": _change_shape,
    "affine": _change_affine,
    "codes": _change_codes,
    "values": _spoil_values,
    "intensities": _rescale,
    "name": _rename,
    "no file": _replace,
}


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/fuzz_segment.py")
