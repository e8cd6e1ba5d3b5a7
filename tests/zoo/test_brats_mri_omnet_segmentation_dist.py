"""The bundle's training in several processes, as the model zoo's CI tests bundles: from the root of its repository."""

import os
import subprocess
import sys
import tempfile
import unittest

import torch
from test_brats_mri_omnet_segmentation import BUNDLE_ROOT, TINY


class TestBratsMriOmnetSegmentationDist(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cases, self.out = os.path.join(folder.name, "cases"), os.path.join(folder.name, "out")
        # In the bundle's root, where Python finds its package.
        words = ["-m", "omnet_monai", "phantom", self.cases, "--cases", "4", "--size", "32,32,24"]
        subprocess.check_call([sys.executable, *words], cwd=BUNDLE_ROOT)

    def test_processes_train_one_network(self):
        processes = max(2, torch.cuda.device_count())
        backend = "nccl" if torch.cuda.device_count() >= processes else "gloo"
        override = {**TINY, "backend": backend, "dataset_dir": self.cases, "ckpt_dir": self.out, "run_dir": self.out}
        names = ["configs/train.json", "configs/multi_gpu_train.json"]
        words = ["--standalone", f"--nproc_per_node={processes}", "-m", "monai.bundle", "run", f"--config_file={names}"]
        words += [f"--{key}={value}" for key, value in override.items()]
        subprocess.check_call([sys.executable, "-m", "torch.distributed.run", *words], cwd=BUNDLE_ROOT)
        self.assertTrue(os.path.isfile(os.path.join(self.out, "model.pt")))


if __name__ == "__main__":
    unittest.main()
