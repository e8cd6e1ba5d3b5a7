"""Federated rounds: two of MONAI's clients train the bundle, their weights are averaged by hand."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from omnet_monai.datalist import read_cases
from omnet_monai.results import read_scores

# What a client says of configs that come from its server: that they are code.
pytestmark = pytest.mark.filterwarnings("ignore:executing the bundle config:UserWarning")

BUNDLE = Path(__file__).parents[1] / "bundle"
ROUNDS, EPOCHS, STEPS = 3, 3, 2  # a round has as many epochs as stages, which must not begin
TINY: dict[str, Any] = {
    "network_def#features": [4, 4, 8, 8],
    "patch_size": [24, 16, 16],
    "steps_per_epoch": STEPS,
    "cases_per_step": 1,
    "patches_per_task": 1,
    "learning_rate": 0.01,
}
State = dict[str, torch.Tensor]


class Client:
    """A client that notes, at each step, the learning rate and the stage, and at each round what it starts from."""

    def __init__(self, folder: Path, phantoms: Path, case: dict[str, Any]) -> None:
        places = {"dataset_dir": phantoms, "ckpt_dir": folder, "run_dir": folder / "run", "output_dir": folder / "out"}
        places["cache_dir"] = folder / "cache"
        settings = {**TINY, **{name: str(place) for name, place in places.items()}, "train#dataset#data": [case]}
        self.algo = MonaiAlgo(str(BUNDLE), local_epochs=EPOCHS, train_kwargs=settings, eval_kwargs=dict(settings))
        self.algo.initialize({ExtraItems.CLIENT_NAME: folder.name})
        self.starts: list[State] = []
        self.rates: list[float] = []
        self.stages: list[int] = []
        self.curriculum = self.algo.train_workflow.parser.get_parsed_content("curriculum")
        self.algo.trainer.add_event_handler(Events.ITERATION_STARTED, self.note)

    def note(self, engine: Engine) -> None:
        if (engine.state.iteration - 1) % (EPOCHS * STEPS) == 0:
            self.starts.append(copy(engine.network.state_dict()))
        self.rates.append(min(group["lr"] for group in engine.optimizer.param_groups))
        self.stages.append(self.curriculum.num_tasks)

    def round(self, weights: State) -> State:
        """Train for a round, and return the differences to the weights it began with."""
        self.algo.train(ExchangeObject(weights=copy(weights)))
        return dict(self.algo.get_weights().weights)


def copy(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


def average(weights: State, changes: list[State]) -> State:
    """Add the mean of the clients' changes to the weights, as the server of FedAvg does."""
    means = {name: torch.stack([change[name].double() for change in changes]).mean(0) for name in weights}
    return {name: (value.double() + means[name]).to(value.dtype) for name, value in weights.items()}


@pytest.fixture(scope="module")
def federation(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Client], list[State]]:
    """Two clients with a case each, beside the leftovers of an ordinary run, and the weights of each round."""
    folder = tmp_path_factory.mktemp("federation")
    cases = read_cases(phantoms / "datalist.json")
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "train.json")
    parser["network_def#features"] = TINY["network_def#features"]
    torch.manual_seed(1)
    weights = [copy(parser.get_parsed_content("network_def").state_dict())]
    clients = []
    for name, case in zip(("north", "south"), cases, strict=False):
        (folder / name / "run").mkdir(parents=True)
        for leftover in ("model.pt", "run/checkpoint.pt"):
            (folder / name / leftover).write_text("of another run, and not to be read")
        clients.append(Client(folder / name, phantoms, case))
    for _ in range(ROUNDS):
        weights.append(average(weights[-1], [client.round(weights[-1]) for client in clients]))
    return clients, weights


@pytest.mark.parametrize("name", ["north", "south"])
def test_a_client_starts_each_round_from_the_aggregated_weights(
    federation: tuple[list[Client], list[State]], name: str
) -> None:
    clients, weights = federation
    client = clients[["north", "south"].index(name)]
    assert len(client.starts) == ROUNDS
    for start, expected in zip(client.starts, weights, strict=False):
        assert all(torch.equal(start[key], expected[key]) for key in expected)


def test_the_clients_train_apart_and_the_average_lies_between_them(
    federation: tuple[list[Client], list[State]],
) -> None:
    clients, weights = federation
    first, second = (client.algo.get_weights().weights for client in clients)
    key = "backbone.encoders.0.0.conv.weight"
    assert not torch.equal(first[key], second[key])
    expected = weights[-2][key] + (first[key] + second[key]) / 2
    torch.testing.assert_close(weights[-1][key], expected)


def test_the_learning_rate_falls_by_the_cosine_in_every_round(federation: tuple[list[Client], list[State]]) -> None:
    # 0.01 * (1 + cos(k * 30 degrees)) / 2 at the steps k = 0 to 5 of a round; it would be 0 at the step after.
    expected = [0.01, 0.00933013, 0.0075, 0.005, 0.0025, 0.00066987] * ROUNDS
    for client in federation[0]:
        assert client.rates == pytest.approx(expected, abs=1e-8)


def test_all_tasks_are_active_in_every_round(federation: tuple[list[Client], list[State]]) -> None:
    for client in federation[0]:
        assert client.stages == [3] * STEPS * EPOCHS * ROUNDS


def test_a_client_scores_the_weights_it_is_sent(federation: tuple[list[Client], list[State]]) -> None:
    clients, weights = federation
    client = clients[0]
    metrics = client.algo.evaluate(ExchangeObject(weights=copy(weights[-1]))).metrics
    evaluated = client.algo.evaluator.network.state_dict()
    assert all(torch.equal(evaluated[key], value) for key, value in weights[-1].items())
    output = Path(client.algo.eval_workflow.parser["output_dir"])
    (score,) = read_scores(output / "scores.csv").values()
    assert {name: metrics[name] for name in score} == pytest.approx(score, abs=1e-4)
    with open(output / "evaluations.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["weights_sha256"] == "not from a file"


def test_weights_of_another_network_are_refused(federation: tuple[list[Client], list[State]]) -> None:
    clients, _ = federation
    with pytest.raises(RuntimeError, match="No global weights converted"):
        clients[0].algo.train(ExchangeObject(weights={"another": torch.zeros(1)}))
