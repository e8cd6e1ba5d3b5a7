"""The bundle's configs on generated cases, as the model zoo's CI tests bundles: from the root of its repository."""

import os
import sys
import tempfile
import unittest

from monai.bundle import ConfigWorkflow, create_workflow, load

BUNDLE_ROOT = os.path.join("models", "brats_mri_omnet_segmentation")
TINY = {
    "network_def#features": [2, 2, 4, 4],
    "patch_size": [16, 16, 16],
    "steps_per_epoch": 1,
    "cases_per_step": 1,
    "patches_per_task": 1,
    "train#trainer#max_epochs": 3,
    "val_interval": 3,
}


class TestBratsMriOmnetSegmentation(unittest.TestCase):
    def setUp(self):
        code = os.path.abspath(BUNDLE_ROOT)
        sys.path.insert(0, code)
        self.addCleanup(sys.path.remove, code)
        from omnet_monai.datalist import write_datalist
        from omnet_monai.phantom import write_phantoms

        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cases, self.out = os.path.join(folder.name, "cases"), os.path.join(folder.name, "out")
        write_phantoms(self.cases, cases=2, size=(32, 32, 24))
        write_datalist(self.cases, folds=2)

    def run_config(self, names, **override):
        configs = os.path.join(BUNDLE_ROOT, "configs")
        workflow = ConfigWorkflow(
            workflow_type="infer" if names == ["inference.json"] else "train",
            config_file=[os.path.join(configs, name) for name in names],
            logging_file=os.path.join(configs, "logging.conf"),
            meta_file=os.path.join(configs, "metadata.json"),
            bundle_root=BUNDLE_ROOT,
            dataset_dir=self.cases,
            output_dir=self.out,
            **override,
        )
        workflow.initialize()
        self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()

    def test_training_leaves_weights_that_evaluation_scores(self):
        folders = {"ckpt_dir": self.out, "run_dir": os.path.join(self.out, "run"), "fold": 0}
        self.run_config(["train.json"], **TINY, **folders)
        self.assertTrue(os.path.isfile(os.path.join(self.out, "model.pt")))
        self.run_config(["train.json", "evaluate.json"], **TINY, **folders, datalist_key="training")
        self.assertTrue(os.path.isfile(os.path.join(self.out, "scores.csv")))

    def test_inference_segments_every_case_with_the_bundles_weights(self):
        self.run_config(["inference.json"])
        self.assertEqual(sorted(os.listdir(self.out)), ["phantom_000_seg.nii.gz", "phantom_001_seg.nii.gz"])

    def test_a_program_loads_the_network_and_the_workflow(self):
        models, name = os.path.split(BUNDLE_ROOT)
        network = load(name, bundle_dir=models, workflow_type="inference")
        workflow = create_workflow(
            config_file=os.path.join(BUNDLE_ROOT, "configs", "inference.json"), workflow_type="inference"
        )
        self.assertEqual(type(network).__name__, "OMNet")
        self.assertEqual(network.state_dict().keys(), workflow.network_def.state_dict().keys())


if __name__ == "__main__":
    unittest.main()
