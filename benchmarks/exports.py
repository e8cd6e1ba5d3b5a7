"""
Compare exported networks with the network they were exported from, in the folder of a clone.

  python benchmarks/exports.py windows CASES FILE...     largest difference of a probability, and time, on real windows
  python benchmarks/exports.py maps EAGER EXPORTED       Dice between the label maps of two folders
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import fire
import nibabel
import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.metrics import compute_dice
from monai.transforms import RandSpatialCropSamples

from omnet_monai.datalist import read_images
from omnet_monai.demo import bundle_root
from omnet_monai.exported import ExportedNetwork
from omnet_monai.inferers import AutocastInferer
from omnet_monai.regions import REGIONS, regions_from_classes
from omnet_monai.report import format_table
from omnet_monai.weights import load_weights

BATCH = 4


def windows(cases: str, *files: str, batches: int = 4, seed: int = 0) -> None:
    """
    Print a row for the network itself, for it in bfloat16, and for each export: the largest difference of a probability
    from the first row, and the median processor time of a batch of four windows, in seconds and relative to the first.

    Args:
        cases: folder of cases.
        files: exported networks.
        batches: how many batches of random windows to take from the brain's box of each case.
        seed: of the windows.
    """
    parser = ConfigParser()
    parser.read_config(bundle_root() / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle_root())
    network, window = parser.get_parsed_content("network_def").eval(), parser["patch_size"]
    load_weights(network, parser.get_parsed_content("checkpoint_path"))
    exact, mixed = (AutocastInferer(SimpleInferer(), amp=amp) for amp in (False, True))
    runs = {"eager": (exact, network), "eager, amp": (mixed, network)}
    runs |= {Path(file).name: (exact, ExportedNetwork(file, "cpu", window)) for file in files}
    differences, seconds = dict.fromkeys(runs, 0.0), {name: list[float]() for name in runs}

    prepare, crop = parser.get_parsed_content("preprocessing"), RandSpatialCropSamples(window, BATCH, random_size=False)
    crop.set_random_state(seed)
    for case in read_images(cases):
        image = prepare(case)["image"].as_tensor()
        for _ in range(batches):
            batch, preds = torch.stack(list(crop(image))), {}
            for name, (inferer, runner) in runs.items():
                start = time.process_time()
                with torch.no_grad():
                    preds[name] = inferer(batch, runner)
                seconds[name].append(time.process_time() - start)
                differences[name] = max(differences[name], float((preds[name] - preds["eager"]).abs().max()))

    times = {name: median(values) for name, values in seconds.items()}
    rows: list[list[str | float]] = [
        [name, f"{differences[name]:.1e}", times[name], times[name] / times["eager"]] for name in runs
    ]
    print(format_table(["network", "largest difference", "seconds", "relative"], rows))


def maps(eager: str, exported: str) -> None:
    """Print, for each case, Dice of WT, TC and ET between its label maps in two folders, and how many voxels differ."""
    rows: list[list[str | float]] = []
    for path in sorted(Path(exported).glob("*_seg.nii.gz")):
        images = [nibabel.Nifti1Image.from_filename(file) for file in (Path(eager) / path.name, path)]
        labels = [torch.from_numpy(image.get_fdata())[None] for image in images]
        first, second = (regions_from_classes(label)[None] for label in labels)
        dice = compute_dice(second, first, ignore_empty=False)[0].tolist()
        rows.append([path.name, *(f"{value:.6f}" for value in dice), str(int((labels[0] != labels[1]).sum()))])
    print(format_table(["label map", *REGIONS, "voxels that differ"], rows))


if __name__ == "__main__":
    fire.Fire({"windows": windows, "maps": maps}, name="python benchmarks/exports.py")
