"""MONAI Label's own server with the packaged bundle, driven over REST: what a viewer asks for, and what goes wrong."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from omnet_monai.packaging import BUNDLE_NAME, package
from omnet_monai.phantom import write_phantoms
from omnet_monai.weights import ModelFile

pytestmark = pytest.mark.label

ROOT = Path(__file__).parents[1]
LABELS = {"ncr/net": 1, "edema": 2, "enhancing tumor": 3}
ENDINGS = ("t1", "t1ce", "t2", "flair")
TINY: dict[str, Any] = {
    "network_def#features": [4, 4, 8, 8],
    "patch_size": [16, 16, 16],
    "steps_per_epoch": 2,
    "cases_per_step": 1,
    "patches_per_task": 1,
    "val_interval": 1,
}
SECONDS = 300  # at most, for anything the server does


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of an environment with MONAI Label."""
    found = os.environ.get("OMNET_LABEL_PYTHON")
    if not found:
        pytest.skip("needs MONAI Label: run tests/label_environment.py DIR, set OMNET_LABEL_PYTHON to DIR/bin/python")
    return found


def write_weights(bundle: Path, **changes: Any) -> None:
    """Give the bundle random weights of its network, or of a variant of it."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["network_def"].update(changes)
    torch.manual_seed(0)
    ModelFile(bundle / "models" / "model.pt", parser.get_parsed_content("network_def")).save()


@pytest.fixture(scope="module")
def bundle(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged bundle with a network and a training of seconds."""
    target = tmp_path_factory.mktemp("package")
    package(str(target))
    folder = target / BUNDLE_NAME
    for name in ("train.json", "inference.json"):
        parser = ConfigParser()
        parser.read_config(str(folder / "configs" / name))
        parser.update({key: value for key, value in TINY.items() if key in parser})
        (folder / "configs" / name).write_text(json.dumps(parser.get()))
    write_weights(folder)
    return folder


@pytest.fixture(scope="module")
def cases(python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Generated cases by name, each with its four files."""
    folders = write_phantoms(tmp_path_factory.mktemp("cases"), cases=4, size=(40, 40, 32))
    return {folder.name: [folder / f"{folder.name}_{ending}.nii.gz" for ending in ENDINGS] for folder in folders}


@pytest.fixture(scope="module")
def studies(cases: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of studies with one case in each of the layouts that the server lists."""
    folder = tmp_path_factory.mktemp("studies")
    channels, siblings, directory, _ = cases
    images = [nib.load(file) for file in cases[channels]]
    stacked = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
    nib.save(nib.Nifti1Image(stacked, images[0].affine), folder / f"{channels}.nii.gz")
    shutil.copy(cases[siblings][3], folder / f"{siblings}.nii.gz")
    shutil.copytree(cases[siblings][0].parent, folder / "modalities" / siblings)
    shutil.copytree(cases[directory][0].parent, folder / directory)
    objects = {directory: {"image": {"ext": "", "info": {}}, "labels": {}}}
    (folder / "datastore_v2.json").write_text(json.dumps({"name": "", "description": "", "objects": objects}))
    return folder


class Server:
    """The server, started as the page says, in a process group and on a port of its own, with a copy of the bundle."""

    def __init__(self, python: str, folder: Path, bundle: Path, studies: Path, *conf: str) -> None:
        app, self.log = folder / "apps" / "monaibundle", folder / "server.log"
        shutil.copytree(Path(python).parents[1] / "monailabel" / "sample-apps" / "monaibundle", app)
        self.bundle = app / "model" / BUNDLE_NAME
        shutil.copytree(bundle, self.bundle)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.address = f"http://127.0.0.1:{port}"
        page = (ROOT / "bundle" / "docs" / "monai-label.md").read_text()
        line = next(line for line in page.splitlines() if " start_server " in line)
        words = line.replace("8000", port).replace("STUDIES", str(studies)).split()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [python, *words[1:], *conf],
                cwd=folder,
                env=bare_environment() | {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> Server:
        """Wait until it answers."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.ask("GET", "/info/")
            except urllib.error.URLError:
                time.sleep(0.5)
            else:
                return self
        pytest.fail(f"the server did not start:\n{self.text()[-3000:]}")

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        """Send a request; JSON comes back, or the bytes of a file."""
        headers = {"Content-Type": kind} if body else {}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            content = answer.read()
            return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

    def upload(self, path: str, name: str, *files: Path) -> Any:
        """Put files as a form."""
        mark = uuid.uuid4().hex
        body = b""
        for file in files:
            head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="{file.name}"\r\n'
            body += f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + file.read_bytes() + b"\r\n"
        return self.ask("PUT", path, body + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}")

    def infer(self, where: dict[str, str], output: str = "image", **params: Any) -> Any:
        """Ask for a label map, or for what is said about it."""
        path = f"/infer/{BUNDLE_NAME}?" + urllib.parse.urlencode(where | {"output": output})
        body = urllib.parse.urlencode({"params": json.dumps(params)}).encode()
        content = self.ask("POST", path, body, "application/x-www-form-urlencoded")
        return nib.Nifti1Image.from_bytes(gzip.decompress(content)) if output == "image" else content

    def work(self, path: str, **request: Any) -> str:
        """Have a task done in the background; its status comes back."""
        self.ask("POST", path, json.dumps(request).encode())
        return self.finish(path.rpartition("/")[0] + "/")

    def finish(self, path: str) -> str:
        """Wait for the end of a task in the background; its status comes back."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            status = self.ask("GET", path)["status"]
            if status not in ("SUBMITTED", "RUNNING"):
                return status
            time.sleep(0.5)
        pytest.fail(f"{path} does not end:\n{self.text()[-3000:]}")

    def text(self) -> str:
        """What it logged so far."""
        return self.log.read_text(errors="replace")

    def says(self, text: str) -> bool:
        """Whether it logs a text; a refused request is answered before it is logged."""
        end = time.monotonic() + 20
        while text not in self.text() and time.monotonic() < end:
            time.sleep(0.1)
        return text in self.text()

    def stop(self) -> None:
        """End the server and what it started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@pytest.fixture(scope="module")
def server(python: str, bundle: Path, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(python, tmp_path_factory.mktemp("server"), bundle, studies)
    try:
        yield running.wait()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def references(python: str, bundle: Path, cases: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory):
    """The label maps of a plain run of the same bundle in the same environment, by case."""
    return run_bundle(python, bundle, cases, tmp_path_factory.mktemp("references"))


def run_bundle(python: str, bundle: Path, cases: dict[str, list[Path]], out: Path) -> dict[str, nib.Nifti1Image]:
    data = [{"image": [str(file) for file in files], "case": case} for case, files in cases.items()]
    words = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--output_dir", str(out)]
    command = [python, *words, "--dataset#data", json.dumps(data)]
    done = subprocess.run(command, cwd=bundle, env=bare_environment(), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    return {case: nib.load(out / f"{case}_seg.nii.gz") for case in cases}


def bare_environment() -> dict[str, str]:
    """One thread, and no package of ours but the bundle's own."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def assert_same(got: nib.Nifti1Image, expected: nib.Nifti1Image) -> None:
    assert got.get_data_dtype() == np.uint8
    np.testing.assert_allclose(got.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(got.dataobj), np.asarray(expected.dataobj))


def slicer_label(files: list[Path], path: Path, changed: int | None = None) -> Path:
    """The case's true label map with the values that 3D Slicer's export writes, 1, 2 and 3."""
    truth = nib.load(str(files[0]).replace("_t1.", "_seg."))
    data = np.asarray(truth.dataobj).astype(np.uint8)
    data[data == 4] = 3
    if changed is not None:
        data[0, 0, 0] = changed
    nib.save(nib.Nifti1Image(data, truth.affine), path)
    return path


def test_the_server_names_model_values_and_trainer(server: Server) -> None:
    info = server.ask("GET", "/info/")
    model = info["models"][BUNDLE_NAME]
    assert model["labels"] == LABELS
    assert (model["type"], model["dimension"]) == ("segmentation", 3)
    assert info["trainers"][BUNDLE_NAME]["config"]["max_epochs"] == 50
    assert info["datastore"]["total"] == 3


@pytest.mark.parametrize("layout", range(3), ids=["one 4-D file", "one 3-D file with siblings", "a folder"])
def test_a_listed_case_gives_the_voxels_of_a_bundle_run(
    layout: int, server: Server, cases: dict[str, list[Path]], references: dict[str, nib.Nifti1Image]
) -> None:
    case = list(cases)[layout]
    assert_same(server.infer({"image": case}), references[case])
    assert server.infer({"image": case}, output="json")["label_names"] == LABELS


def test_four_paths_in_a_request_give_the_voxels_of_a_bundle_run(
    server: Server, cases: dict[str, list[Path]], references: dict[str, nib.Nifti1Image]
) -> None:
    case = list(cases)[3]
    image = [str(file) for file in cases[case]]
    assert_same(server.infer({"image": "anything"}, image=image), references[case])


def test_four_uploaded_files_give_the_voxels_of_a_bundle_run(
    server: Server, cases: dict[str, list[Path]], references: dict[str, nib.Nifti1Image]
) -> None:
    case = list(cases)[3]
    session = server.upload("/session/", "files", *cases[case])["session_id"]
    assert_same(server.infer({"session_id": session}), references[case])
    server.ask("DELETE", f"/session/{session}")


@pytest.mark.parametrize("strategy", ["first", "random"])
def test_active_learning_picks_an_unlabeled_case(strategy: str, server: Server, cases: dict[str, list[Path]]) -> None:
    assert server.ask("POST", f"/activelearning/{strategy}", b"{}")["id"] in list(cases)[:3]


def test_a_case_without_a_sequence_is_named_and_the_server_goes_on(
    server: Server, cases: dict[str, list[Path]], tmp_path: Path
) -> None:
    case, files = next(iter(cases.items()))
    for file in files[:2] + files[3:]:
        shutil.copy(file, tmp_path)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        server.infer({"image": str(tmp_path)})
    rule = "a file for each of t1, t1c, t2, flair must be there, got missing t2"
    assert server.says(f"ValueError: case {case}: {tmp_path}: {rule}")
    assert server.infer({"image": case}).shape == (40, 40, 32)


def train(server: Server, **changes: Any) -> tuple[str, str]:
    """Train as 3D Slicer asks for it, with every setting the server told; the status and what was logged come back."""
    settings = server.ask("GET", "/info/")["trainers"][BUNDLE_NAME]["config"]
    request = {key: value[0] if isinstance(value, list) else value for key, value in settings.items()}
    before = len(server.text())
    status = server.work(f"/train/{BUNDLE_NAME}", **request | changes)
    return status, server.text()[before:]


def submit(server: Server, case: str, label: Path) -> None:
    server.upload(f"/datastore/label?image={case}&tag=final", "label", label)


@pytest.mark.parametrize(
    ("val_split", "saved"),
    [(0.0, "No validation chose a network: saved the last one"), (0.5, "Best dice_mean so far")],
    ids=["without validation cases", "with a validation case"],
)
def test_training_starts_from_the_weights_with_all_tasks_and_saves(
    val_split: float, saved: str, server: Server, cases: dict[str, list[Path]], tmp_path: Path
) -> None:
    for case in list(cases)[:2]:
        submit(server, case, slicer_label(cases[case], tmp_path / f"{case}.nii.gz"))
    weights = server.bundle / "models" / "model.pt"
    before = weights.read_bytes()
    status, log = train(server, max_epochs=3, val_split=val_split)
    assert status == "DONE", log[-3000:]
    assert f"Restored all variables from {weights}" in log
    assert [line.split(" - ")[-1] for line in log.splitlines() if "tasks active (" in line] == [
        "Curriculum: 3 of 3 tasks active (coarse, refined, precise), epoch 1."
    ]
    assert "Epoch 3 of 3: loss coarse" in log
    assert saved in log
    assert weights.read_bytes() != before


def test_an_inference_after_training_uses_the_new_weights(
    python: str, server: Server, cases: dict[str, list[Path]], tmp_path: Path
) -> None:
    case = list(cases)[3]
    expected = run_bundle(python, server.bundle, {case: cases[case]}, tmp_path)[case]
    assert_same(server.infer({"image": str(cases[case][0])}), expected)


def test_batch_inference_stores_a_label_map_of_each_unlabeled_case(
    server: Server, cases: dict[str, list[Path]], studies: Path
) -> None:
    case = list(cases)[2]  # the first two are labeled
    settings = {"save_label": True, "label_tag": "original", "max_workers": 1, "multi_gpu": False}
    assert server.work(f"/batch/infer/{BUNDLE_NAME}?images=unlabeled", **settings) == "DONE"
    assert_same(nib.load(studies / "labels" / "original" / f"{case}.nii.gz"), server.infer({"image": case}))


def test_a_label_with_unknown_codes_is_named_and_nothing_is_trained(
    server: Server, cases: dict[str, list[Path]], studies: Path, tmp_path: Path
) -> None:
    case = next(iter(cases))
    submit(server, case, slicer_label(cases[case], tmp_path / "label.nii.gz", changed=7))
    before = (server.bundle / "models" / "model.pt").read_bytes()
    status, log = train(server, max_epochs=1, val_split=0.0)
    assert status == "ERROR"
    stored = studies / "labels" / "final" / f"{case}.nii.gz"
    rule = "label codes of no scheme must be among [0, 1, 2, 3, 4], got [7.0]"
    assert f"ValueError: case {case}: {stored}: {rule}" in log
    assert (server.bundle / "models" / "model.pt").read_bytes() == before
    assert server.infer({"image": case}).shape == (40, 40, 32)


def test_weights_of_another_variant_are_refused_and_the_server_goes_on(
    server: Server, cases: dict[str, list[Path]]
) -> None:
    case = next(iter(cases))
    write_weights(server.bundle, attention="none")
    with pytest.raises(urllib.error.HTTPError, match="500"):
        server.infer({"image": case})
    assert server.says('Missing key(s) in state_dict: "heads.1.segmentation')
    write_weights(server.bundle)
    assert server.infer({"image": case}).shape == (40, 40, 32)


def test_a_bundle_without_weights_is_left_out_of_the_models(
    python: str, bundle: Path, studies: Path, tmp_path: Path
) -> None:
    without = shutil.copytree(bundle, tmp_path / "without" / BUNDLE_NAME, ignore=shutil.ignore_patterns("model.pt"))
    server = Server(python, tmp_path, without, studies)
    try:
        assert server.wait().ask("GET", "/info/")["models"] == {}
        assert server.says(f"Ignore {server.bundle} as neither model.pt nor model.ts exists")
        with pytest.raises(urllib.error.HTTPError, match="500"):
            server.infer({"image": "phantom_000"})
        assert BUNDLE_NAME in server.ask("GET", "/info/")["trainers"]
    finally:
        server.stop()


def test_unlabeled_cases_are_scored_by_what_dropout_changes(
    python: str, bundle: Path, studies: Path, cases: dict[str, list[Path]], tmp_path: Path
) -> None:
    unlabeled = shutil.copytree(studies, tmp_path / "studies", ignore=shutil.ignore_patterns("labels"))
    conf = ["--conf", "epistemic_model", BUNDLE_NAME, "--conf", "epistemic_simulation_size", "2"]
    server = Server(python, tmp_path, bundle, unlabeled, *conf)
    try:
        assert server.wait().finish("/scoring/") == "DONE", server.text()[-3000:]  # it scores as soon as it is up
        scores = [server.ask("GET", f"/datastore/image/info?image={case}") for case in list(cases)[:3]]
        # Of labels it would be negative; of three probabilities, -p log p adds up to 3 / e at most.
        assert all(0 < score["epistemic_entropy"] < 3 / np.e for score in scores)
    finally:
        server.stop()
