"""What the JSON configs must hold so that MONAI, MONAI Label and the zoo's checks find what they look for."""

from __future__ import annotations

import ast
import configparser
import json
import re
from pathlib import Path
from pydoc import locate
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow
from monai.bundle.scripts import ckpt_export, verify_metadata, verify_net_in_out

from omnet_monai.networks import ModelCascade, OMNet
from omnet_monai.regions import SEQUENCES
from omnet_monai.weights import StrictCheckpointLoader

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
FILES = sorted(CONFIGS.glob("*.json"))
STACKS = {
    "train": ["train.json"],
    "evaluate": ["train.json", "evaluate.json"],
    "inference": ["inference.json"],
    "inference_exported": ["inference.json", "inference_exported.json"],
    "inference_trt": ["inference.json", "inference_trt.json"],
    "segment": ["inference.json", "segment.json"],
    "paper": ["train.json", "paper.json"],
    "demo": ["train.json", "demo.json"],
    "lesions": ["train.json", "lesions.json"],
    "multi_gpu_train": ["train.json", "multi_gpu_train.json"],
    "multi_gpu_evaluate": ["train.json", "evaluate.json", "multi_gpu_evaluate.json"],
    **{
        name: ["train.json", f"{name}.json"]
        for name in ("few_steps", "no_attention", "se", "no_transfer", "no_curriculum", "mc1", "refined", "precise")
    },
    "mc2": ["train.json", "evaluate.json", "mc2.json"],
    "mc3": ["train.json", "evaluate.json", "mc3.json"],
    "cost": ["train.json", "evaluate.json", "cost.json"],
    "inference_mc3": ["inference.json", "mc3.json"],
}


def read(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    return parser


def strings(config: Any) -> list[str]:
    if isinstance(config, dict):
        return [text for value in config.values() for text in strings(value)]
    if isinstance(config, list):
        return [text for value in config for text in strings(value)]
    return [config] if isinstance(config, str) else []


def expressions(path: Path) -> list[str]:
    found = [text[1:] for text in strings(json.loads(path.read_text())) if text.startswith("$")]
    return [re.sub(r"@[\w#]+", "x", text) for text in found if not re.match(r"(import|from) ", text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_expression_has_a_branch_or_logic_of_its_own(path: Path) -> None:
    forbidden = (ast.IfExp, ast.Lambda, ast.BoolOp, ast.Compare, ast.comprehension)
    for text in expressions(path):
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, forbidden)]
        assert all(isinstance(node, ast.Compare) and "get_rank() > 0" in text for node in nodes), text


def test_a_network_that_diverged_is_neither_validated_nor_saved() -> None:
    names = [handler["_target_"].split(".")[-1] for handler in read("train.json").get("train#handlers")]
    assert names.index("DivergenceCheck") < min(
        names.index(name) for name in ("ValidationToTheEnd", "SaveLast", "SaveCheckpoint")
    )


@pytest.mark.parametrize("names", STACKS.values(), ids=STACKS)
def test_every_import_is_used_and_every_reference_exists(names: list[str]) -> None:
    parser = read(*names)
    # A device is named by an override; evaluate.json needs the saver's names, and stands on the imports of train.json.
    texts = ["$torch.device('cpu')", *strings(parser.get())] + (
        strings(json.loads((CONFIGS / "evaluate.json").read_text())) if len(names) == 1 else []
    )
    texts = [text for text in texts if not re.match(r"\$(import|from) ", text)]
    own = json.loads((CONFIGS / names[-1]).read_text())
    for statement in own.get("imports", []) + own.get("+imports", []):
        name = statement.split()[-1]
        assert any(re.search(rf"\b{name}\b", text) for text in texts if text.startswith("$")), statement
    for text in strings(parser.get()):
        for reference in re.findall(r"@([\w#]+)", text):
            assert reference in parser, f"{reference} in {text}"


@pytest.mark.parametrize("names", STACKS.values(), ids=STACKS)
def test_every_target_can_be_located(names: list[str]) -> None:
    def targets(config: Any) -> list[str]:
        if isinstance(config, dict):
            inner = [target for value in config.values() for target in targets(value)]
            return inner + ([config["_target_"]] if "_target_" in config else [])
        return [target for value in config for target in targets(value)] if isinstance(config, list) else []

    for target in targets(read(*names).get()):
        path = target if "." in target else ComponentLocator().get_component_module_name(target) + "." + target
        assert locate(path) is not None, target


def test_train_and_inference_name_the_same_network_transforms_and_window() -> None:
    train, inference = read("train.json"), read("inference.json")
    steps = train["validate"]["refinement"]["transforms"]
    assert inference["postprocessing"]["transforms"][: len(steps)] == steps
    switches = ("fill_core", "inner_cluster_volume", "relabel_edema", "enhancing_volume")
    for name in ("thresholds", "cluster_volume", "cluster_peak", "incomplete_peak", *switches):
        assert train[name] == inference[name]
        assert f"@{name}" in strings(steps)
    assert train["network_def"] == inference["network_def"]
    assert train["validate"]["preprocessing"] == inference["preprocessing"]
    assert train["patch_size"] == inference["patch_size"]
    assert train["overlap"] == inference["overlap"]
    assert all(train[name] == inference[name] for name in ("search_threshold", "search_peak"))
    assert train["search"] == 0  # networks in training are scored on every window,
    assert read(*STACKS["evaluate"])["search"] == inference["search"]  # evaluation scores what inference does
    assert train["validate"]["inferer"] == inference["inferer"]
    searching = ("search", "search_threshold", "search_peak")
    assert {name: inference["inferer"][name] for name in searching} == {name: f"@{name}" for name in searching}
    assert train["validate"]["inferer"]["inferer"]["roi_size"] == "@patch_size"
    assert inference["inferer"]["inferer"]["roi_size"] == "@patch_size"
    assert train["train"]["augmentation"]["spatial_size"] == "@patch_size"
    cropper = train["train"]["random_transforms"][0]
    assert cropper["_target_"].endswith("RandCropByTaskd")
    assert cropper["spatial_size"] == "@patch_size"


def test_less_certainty_is_asked_of_incomplete_cases_which_training_makes_and_flair_is_shifted_far() -> None:
    clear = read("inference.json").get_parsed_content("postprocessing").transforms[0]
    assert (clear.min_peak, clear.incomplete_peak) == (0.93, 0.8)
    shift = read("train.json")["train"]["augmentation"]["shift"]
    assert dict(zip(SEQUENCES, shift, strict=True)) == {"t1": 0.15, "t1c": 0.15, "t2": 0.15, "flair": 0.5}
    for name, share in {"demo.json": 0, "paper.json": 0, "no_attention.json": 0.3, "lesions.json": 0.5}.items():
        assert read("train.json", name).get_parsed_content("train#augmentation").drop_prob == share


def test_training_prepares_images_as_inference_does_and_labels_along() -> None:
    train, inference = read("train.json")["train"]["preprocessing"], read("inference.json")["preprocessing"]
    for with_label, alone in zip(train["transforms"], inference["transforms"], strict=True):
        rest = {key: value for key, value in alone.items() if key not in ("keys", "mode")}
        assert {key: value for key, value in with_label.items() if key not in ("keys", "mode")} == rest


@pytest.mark.parametrize("names", STACKS.values(), ids=STACKS)
def test_handlers_are_literal_lists_of_dictionaries(names: list[str]) -> None:
    parser = read(*names)
    lists = [parser["train"]["handlers"], parser["validate"]["handlers"]] if "train" in parser else [parser["handlers"]]
    for handlers in lists:
        assert isinstance(handlers, list)
        assert all(isinstance(handler, dict) and "_target_" in handler for handler in handlers)


@pytest.mark.parametrize(
    ("names", "kind", "tasks"),
    [
        (["train.json", "mc1.json"], OMNet, ["coarse"]),
        (["train.json", "refined.json"], OMNet, ["refined"]),
        (["train.json", "precise.json"], OMNet, ["precise"]),
        (["inference.json", "mc1.json"], OMNet, ["coarse"]),
        (["inference.json", "mc2.json"], ModelCascade, ["coarse", "refined"]),
        (["train.json", "evaluate.json", "mc3.json"], ModelCascade, ["coarse", "refined", "precise"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__name__,
)
def test_the_networks_of_a_cascade_are_those_that_are_trained_for_it(
    names: list[str], kind: type, tasks: list[str]
) -> None:
    parser = read(*names)
    parser["network_def"]["features"] = [2, 2, 2, 2]
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, kind)
    trained = OMNet(class_counts=(4, 4, 2), features=[2, 2, 2, 2], tasks=tasks[-1:]).state_dict()
    last = list(network.networks)[-1] if kind is ModelCascade else network
    assert {key: value.shape for key, value in last.state_dict().items()} == {
        key: value.shape for key, value in trained.items()
    }
    if kind is ModelCascade:
        files = parser.get_parsed_content("checkpoint_path")
        assert files == [f"./models/{task}/model.pt" for task in tasks]
        StrictCheckpointLoader(files, network)
    elif "train.json" in names:
        for part in ("loss_function", "curriculum"):
            assert [task.name for task in parser.get_parsed_content(part).tasks] == tasks


@pytest.mark.parametrize("name", ["inference_exported", "inference_trt"])
def test_inference_from_an_export_leaves_out_the_checkpoint_alone(name: str) -> None:
    base, exported = read("inference.json"), read(*STACKS[name])
    kept = [handler for handler in exported["handlers"] if not handler.get("_disabled_")]
    assert base["handlers"][0]["_target_"].endswith("CheckpointLoader")
    assert kept == base["handlers"][1:]
    changed = {key for key in exported.get() if exported[key] != base.get(key)}
    assert changed == {"_desc_", "exported_path", "network_def", "handlers"}


def test_the_ids_that_monai_label_and_the_zoo_look_up_are_there() -> None:
    train, inference = read("train.json"), read("inference.json")
    for name in ("bundle_root", "device", "dataset_dir", "network_def", "network", "val_interval", "train#handlers"):
        assert name in train, name
    for name in ("train#trainer#max_epochs", "train#dataset#data", "validate#dataset#data", "validate#evaluator"):
        assert name in train, name
    for name in ("network_def", "preprocessing", "inferer", "postprocessing", "evaluator", "displayable_configs"):
        assert name in inference, name


def test_the_saved_values_have_no_gap_and_carry_their_names() -> None:
    outputs = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]["outputs"]
    assert list(outputs) == ["pred"]
    assert outputs["pred"]["channel_def"] == {"0": "background", "1": "NCR/NET", "2": "edema", "3": "enhancing tumor"}


@pytest.mark.parametrize("workflow_type", ["train", "evaluate", "inference"])
def test_workflows_have_every_property_of_a_bundle(workflow_type: str, phantoms: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in STACKS[workflow_type]],
        meta_file=str(CONFIGS / "metadata.json"),
        workflow_type="infer" if workflow_type == "inference" else "train",
        bundle_root=str(CONFIGS.parent),
        dataset_dir=str(phantoms),
        output_dir=str(tmp_path),
        run_dir=str(tmp_path),
        ckpt_dir=str(tmp_path),
    )
    workflow.initialize()
    assert not workflow.check_properties()
    workflow.finalize()


@pytest.mark.parametrize(("device", "workers"), [("cpu", 0), ("cuda", 4), ("cuda:1", 4), ("mps", 0)])
def test_other_processes_cut_patches_beside_a_gpu_alone(device: str, workers: int) -> None:
    parser = read("train.json")
    parser["device"] = f"$torch.device('{device}')"
    assert parser.get_parsed_content("num_workers") == workers
    parser["num_workers"] = 2
    assert parser.get_parsed_content("train#dataloader#num_workers") == 2


def test_initializing_touches_neither_data_nor_weights(tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "inference.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        workflow_type="infer",
        dataset_dir=str(tmp_path / "absent"),
        checkpoint_path=str(tmp_path / "absent.pt"),
    )
    workflow.initialize()
    for name in ("network_def", "preprocessing", "inferer", "postprocessing"):
        assert workflow.parser.get_parsed_content(name) is not None


@pytest.mark.parametrize("elsewhere", [False, True], ids=["from the bundle root", "from elsewhere"])
def test_the_network_takes_and_gives_what_the_metadata_says(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path if elsewhere else CONFIGS.parent)
    verify_net_in_out(
        net_id="network_def", meta_file=str(CONFIGS / "metadata.json"), config_file=str(CONFIGS / "inference.json"), p=1
    )


@pytest.mark.parametrize("elsewhere", [False, True], ids=["from the bundle root", "from elsewhere"])
def test_the_network_exports_to_torchscript(elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path if elsewhere else CONFIGS.parent)
    network = read("inference.json").get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        key_in_ckpt="",
    )
    image = torch.randn(1, 4, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network.eval()(image))


def test_the_metadata_has_what_the_zoo_requires() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    texts = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
    assert all(isinstance(metadata[name], str) and metadata[name] for name in (*texts, "copyright"))
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (CONFIGS.parents[1] / "constraints.txt").read_text(), re.MULTILINE))
    named = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    stated = {name: metadata[key] for name, key in named.items()} | metadata["required_packages_version"]
    assert stated == {name: pins[name] for name in stated}


def test_the_metadata_lists_all_that_the_package_needs() -> None:
    metadata, setup = json.loads((CONFIGS / "metadata.json").read_text()), configparser.ConfigParser()
    setup.read(CONFIGS.parents[1] / "setup.cfg")
    needed = set(re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.MULTILINE))
    assert needed == {"monai", "torch", "numpy", *metadata["required_packages_version"]}


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")
def test_the_metadata_follows_the_official_schema(data_root: Path, tmp_path: Path) -> None:
    schema = data_root.parent / "schema" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip("the official schema does not lie beside the data")
    copy = tmp_path / schema.name
    copy.write_bytes(schema.read_bytes())
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(copy))


def test_in_few_steps_attention_starts_and_learns_as_many_times_as_fast_as_features_have_channels() -> None:
    parser = read("train.json", "few_steps.json")
    parser["network_def#features"] = [8, 8, 8, 8]
    network, optimizer = parser.get_parsed_content("network_def"), parser.get_parsed_content("optimizer")
    assert network.attention_gain == 8
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.001, 0.008])
    assert parser.get_parsed_content("loss_function").dice_weight == 1
    usual = read("train.json")
    draws = [p["steps_per_epoch"] * p["cases_per_step"] * p["patches_per_task"] for p in (parser, usual)]
    assert draws[0] == draws[1]  # patches of an epoch


def test_the_papers_learning_rate_halves_every_80000_steps() -> None:
    parser = read("train.json", "paper.json")
    parser["network_def#features"] = [2, 2, 2, 2]
    optimizer, scheduler = parser.get_parsed_content("optimizer"), parser.get_parsed_content("lr_scheduler")
    assert parser["train"]["trainer"]["max_epochs"] * parser["steps_per_epoch"] == 400_000
    assert parser["cases_per_step"] * parser["patches_per_task"] == 20
    assert parser["max_gradient_norm"] is None
    assert parser["amp"] is False
    assert [group["momentum"] for group in optimizer.param_groups] == [0.99] * 3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0, 5e-4]
    rates = {}
    optimizer.step()
    for step in range(160_001):
        rates[step] = [group["lr"] for group in optimizer.param_groups]
        scheduler.step()
    assert rates[0] == rates[79_999] == [1e-3, 2e-3, 2e-3]  # weights, convolution biases, normalization shifts
    assert rates[80_000] == rates[159_999] == [5e-4, 1e-3, 1e-3]
    assert rates[160_000] == [2.5e-4, 5e-4, 5e-4]


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (["no_transfer.json"], {}),
        (["no_curriculum.json"], {}),
        (["lesions.json"], {}),
        (["lesions.json"], {"case_repeats": 8}),
        (["lesions.json"], {"lesions_exclude": []}),
        (["lesions.json"], {"lesions#spacing": [1.0, 1.0, 1.0]}),
        (["paper.json"], {}),
        (["demo.json"], {}),
        (["mc1.json"], {}),
        ([], {"seed": 1}),
        ([], {"learning_rate": 0.01}),
        ([], {"patch_size": [16, 16, 16]}),
        (["few_steps.json"], {}),
        ([], {"steps_per_epoch": 40}),
        ([], {"network_def#attention_gain": 32}),
        ([], {"loss_function#dice_weight": 0.5}),
        ([], {"weights": "model.pt"}),
        ([], {"channel_order": ["flair", "t1", "t1c", "t2"]}),
        ([], {"max_gradient_norm": 1.0}),
        ([], {"curriculum#min_change": 0.1}),
        ([], {"margin": 0.5}),
        ([], {"amp": False}),
        ([], {"train#preprocessing#transforms#3#pixdim": 2.0}),
        ([], {"train#augmentation#shift": 0.1}),
        ([], {"train#augmentation#drop_prob": 0.0}),
        (["paper.json"], {"train#augmentation#flip_prob": 0.5}),
    ],
    ids=str,
)
def test_another_recipe_is_another_run(phantoms: Path, files: list[str], settings: dict[str, Any]) -> None:
    """By ``checkpoint#identity``; what differs in the network's shapes, such as se.json, needs nothing there."""
    assert identity(phantoms, [], {}) == identity(phantoms, [], {})
    assert identity(phantoms, files, settings) != identity(phantoms, [], {})
    assert not settings or identity(phantoms, files, settings) != identity(phantoms, files, {})


def test_another_number_of_processes_is_another_run(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    two = identity(phantoms, ["multi_gpu_train.json"], {})
    monkeypatch.setattr(idist, "get_world_size", lambda: 3)
    assert identity(phantoms, ["multi_gpu_train.json"], {}) != two


def test_what_makes_a_run_has_the_same_text_in_another_process(phantoms: Path) -> None:
    assert " at 0x" not in identity(phantoms, [], {})


def identity(phantoms: Path, files: list[str], settings: dict[str, Any]) -> str:
    """As a checkpoint takes it."""
    parser = read("train.json", *files)
    parser.update({"dataset_dir": str(phantoms), **settings})
    return json.dumps(parser.get_parsed_content("checkpoint#identity"), default=str)
