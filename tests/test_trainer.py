"""`ItwinaiTrainer` does what lightning's Trainer does, and leaves the caller's objects as a local run would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from itwinai import ItwinaiTrainer
from itwinai.errors import UnusedParametersError
from tests.conftest import RunCommand, python
from tests.support.cases import Regression, loader, make_trainer, relative_difference

REMOTE = ("ddp", "ray")


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class History(Callback):
    """Keeps plain values, and a reference to the module, as users' callbacks do."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.module: L.LightningModule | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        self.module = pl_module


# ------------------------------------------------------------------------------------------ as after a local run


@pytest.mark.parametrize("strategy", REMOTE)
def test_caller_is_left_as_after_a_local_run(strategy: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if strategy == "ray":
        request.getfixturevalue("local_ray")

    def run(strategy: str, workers: int, folder: Path) -> tuple[ItwinaiTrainer, Regression, History, dict[str, Any]]:
        L.seed_everything(5, verbose=False)
        module, history = Regression(), History()
        module.label = "untouched"
        first_layer = module.net[0]  # held by somebody else: must see the new weights
        stop = EarlyStopping("val_loss", patience=10)
        checkpoint = ModelCheckpoint(folder, monitor="val_loss", filename="{epoch}")
        trainer = make_trainer(
            strategy,
            workers,
            max_epochs=2,
            enable_checkpointing=True,
            callbacks=[history, stop, checkpoint],
        )
        batch = 8 // workers
        trainer.fit(module, loader(batch, shuffle=True), loader(batch))
        assert history.module is module
        assert module.net[0] is first_layer
        return trainer, module, history, {"stop": stop, "checkpoint": checkpoint}

    local, local_module, local_history, local_callbacks = run("auto", 1, tmp_path / "local")
    trainer, module, history, callbacks = run(strategy, 2, tmp_path / "remote")

    assert relative_difference(weights(module), weights(local_module)) < 1e-6
    assert (trainer.global_step, trainer.current_epoch) == (local.global_step, local.current_epoch) == (26, 2)
    assert trainer.num_training_batches == local.num_training_batches == 13
    assert trainer.state.status == local.state.status == "finished"
    assert set(trainer.callback_metrics) == set(local.callback_metrics)
    assert set(trainer.logged_metrics) == set(local.logged_metrics)
    assert history.losses == pytest.approx(local_history.losses, rel=1e-5)
    assert module.steps_seen == local_module.steps_seen
    assert module.label == "untouched"
    assert float(callbacks["stop"].best_score) == pytest.approx(float(local_callbacks["stop"].best_score), rel=1e-5)
    best, local_best = (Path(one["checkpoint"].best_model_path) for one in (callbacks, local_callbacks))
    assert best.name == local_best.name
    assert trainer.checkpoint_callback is callbacks["checkpoint"]
    stored = torch.load(best, weights_only=True)["state_dict"]
    assert set(stored) == set(module.state_dict())

    # A second fit goes on where the first one ended, with the counters that a local one has.
    for one, its_module, batch in ((local, local_module, 8), (trainer, module, 4)):
        one.fit_loop.max_epochs = 3
        one.fit(its_module, loader(batch), loader(batch))
        assert (one.global_step, one.current_epoch) == (39, 3)
    assert relative_difference(weights(module), weights(local_module)) < 1e-6
    assert len(history.losses) == len(local_history.losses) == 3

    # What the run found is used by the entry points that come after it.
    (tested,) = trainer.test(module, loader(4), ckpt_path="best")
    (locally_tested,) = local.test(local_module, loader(8), ckpt_path="best")
    assert tested == pytest.approx(locally_tested, rel=1e-5)
    (validated,) = trainer.validate(module, loader(4))
    assert validated["val_loss"] == pytest.approx(local.validate(local_module, loader(8))[0]["val_loss"], rel=1e-5)
    for remotely, locally in zip(
        trainer.predict(module, [loader(4), loader(4, samples=9)]),
        local.predict(local_module, [loader(8), loader(8, samples=9)]),
        strict=True,
    ):
        assert torch.allclose(torch.cat(remotely), torch.cat(locally), atol=1e-6)


def test_layers_that_are_made_in_the_workers_come_back() -> None:
    class Late(Regression):
        def __init__(self) -> None:
            super().__init__()
            del self.net
            self.net = None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = nn.Linear(8, 1)

    module = Late()
    make_trainer("ddp", 2, max_epochs=1).fit(module, loader(4))
    assert isinstance(module.net, nn.Linear)
    assert module.net(torch.ones(1, 8)).shape == (1, 1)


def test_classes_of_the_caller_stay_its_own() -> None:
    """A class that was sent by value must not be replaced by the copy that comes back."""
    L.seed_everything(0, verbose=False)

    class Note:
        def __init__(self, text: str) -> None:
            self.text = text

    class Writer(Callback):
        def __init__(self) -> None:
            self.notes: list[Note] = []

        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.notes.append(Note(f"world size {trainer.world_size}"))

    method, writer = Note.__init__, Writer()
    make_trainer("ddp", 2, max_epochs=1, callbacks=[writer]).fit(Regression(), loader(4))
    (note,) = writer.notes
    assert note.text == "world size 2"
    assert type(note) is Note
    assert Note.__init__ is method


# ----------------------------------------------------------------------------------------- whatever lightning runs


class Adversarial(Regression):
    """Manual optimisation with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(1, 1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        first, second = self.optimizers()
        prediction = self.net(batch["x"])
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(nn.functional.mse_loss(prediction, batch["nested"][0]) + self.critic(prediction).mean())
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        self.manual_backward((self.critic(self.net(batch["x"]).detach()) - batch["nested"][0]).pow(2).mean())
        self.clip_gradients(second, 0.5, "norm")
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.net.parameters(), lr=0.01), torch.optim.SGD(self.critic.parameters(), lr=0.01)]


class Rows(Dataset):
    """A dataset of dictionaries."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(8, generator=generator)
        return {"x": x, "nested": [x.sum(0, keepdim=True)], "name": f"row {index}"}


class Backwards(Sampler[int]):
    """A sampler of the user's own."""

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[int]:
        return iter(range(39, -1, -1))


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A collate function of the user's own."""
    return {
        "x": torch.stack([row["x"] for row in rows]),
        "nested": [torch.stack([row["nested"][0] for row in rows])],
        "names": [row["name"] for row in rows],
    }


@pytest.mark.parametrize("strategy", ["ddp_find_unused_parameters_true", "horovod"])
def test_manual_optimization_with_dicts_and_a_custom_sampler(strategy: str) -> None:
    def run(strategy: str, workers: int) -> Tensor:
        L.seed_everything(5, verbose=False)
        module = Adversarial()
        rows = DataLoader(Rows(), batch_size=8 // workers, sampler=Backwards(), collate_fn=collate)
        make_trainer(strategy, workers, max_epochs=2).fit(module, rows)
        return weights(module)

    assert relative_difference(run(strategy, 2), run("auto", 1)) < 1e-6


class Stream(IterableDataset):
    """An iterable dataset that shards itself."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        grouped = torch.distributed.is_initialized()
        rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if grouped else (0, 1)
        x, y = loader(1, samples=32).dataset.tensors
        per_rank = 8 // size
        for start in range(0, 32, 8):
            for index in range(start + rank * per_rank, start + (rank + 1) * per_rank):
                yield x[index], y[index]


@pytest.mark.parametrize("split", [False, True])
def test_iterable_dataset_and_split_batches(split: bool) -> None:
    def run(strategy: str, workers: int) -> tuple[Tensor, list[int]]:
        L.seed_everything(5, verbose=False)
        module = Regression()
        trainer = make_trainer(strategy, workers, max_epochs=1, split_batches=split)
        batch = 8 if split else 8 // workers
        trainer.fit(module, DataLoader(Stream(), batch_size=batch), loader(batch))
        return weights(module), module.steps_seen

    (remote, remote_steps), (local, local_steps) = run("ddp", 2), run("auto", 1)
    assert remote_steps == local_steps == [0, 1, 2, 3]
    assert relative_difference(remote, local) < 1e-6


def test_split_batches_makes_the_batch_size_global() -> None:
    def run(strategy: str, workers: int) -> Tensor:
        L.seed_everything(5, verbose=False)
        module = Regression()
        make_trainer(strategy, workers, max_epochs=2, split_batches=True).fit(module, loader(8, shuffle=True))
        return weights(module)

    assert relative_difference(run("ddp", 2), run("auto", 1)) < 1e-6


def test_notebooks_and_scripts_without_a_main_guard(run_command: RunCommand, tmp_path: Path) -> None:
    """In an interactive session ``sys.ps1`` exists, and lightning refuses launchers that execute the script again."""
    script = tmp_path / "notebook.py"
    script.write_text(
        "import sys; sys.ps1 = '>>> '\n"
        "import torch\n"
        "from tests.support.cases import Regression, loader, make_trainer\n"
        "scale = lambda x: 2 * x\n"
        "class Local(Regression):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return scale(super().training_step(batch, batch_idx))\n"
        "module = Local()\n"
        "make_trainer('ddp', 2, max_epochs=1).fit(module, loader(4))\n"
        "print('steps', len(module.steps_seen))\n"
    )
    ended = run_command(python(str(script)))
    assert ended.code == 0, ended.output
    assert ended.output.count("steps 13") == 1  # only the caller goes on


# -------------------------------------------------------------------------------------------- options of strategies


def options_run(strategy: Any, workers: int, module: Regression | None = None) -> Tensor:
    L.seed_everything(5, verbose=False)
    module = module or Regression()
    make_trainer(strategy, workers, max_epochs=4).fit(module, loader(8 // workers, shuffle=True, samples=64))
    return weights(module)


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return options_run("auto", 1)


@pytest.mark.parametrize("compression", ["fp16", "bf16", "powersgd"])
def test_ddp_gradient_compression(compression: str, plain: Tensor) -> None:
    from itwinai.strategies import DDPStrategy

    difference = relative_difference(options_run(DDPStrategy(gradient_compression=compression, timeout=60), 2), plain)
    assert 1e-7 < difference < 0.2  # it has an effect, and learns the same all the same


def test_ddp_static_graph(plain: Tensor) -> None:
    from itwinai.strategies import DDPStrategy

    assert relative_difference(options_run(DDPStrategy(static_graph=True), 2), plain) < 1e-6


def test_horovod_compression_and_predivision(plain: Tensor) -> None:
    from itwinai.strategies import HorovodStrategy

    assert 1e-7 < relative_difference(options_run(HorovodStrategy(compression="fp16"), 2), plain) < 0.02
    assert relative_difference(options_run(HorovodStrategy(gradient_predivide_factor=2.0), 2), plain) < 1e-6


def test_deepspeed_json_and_offload(plain: Tensor, tmp_path: Path) -> None:
    from itwinai.strategies import DeepSpeedStrategy

    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "gradient_clipping": 1e6}))
    assert relative_difference(options_run(DeepSpeedStrategy(config=path), 2), plain) < 1e-5
    assert relative_difference(options_run(DeepSpeedStrategy(stage=2, offload_optimizer=True), 2), plain) < 1e-5


class Unused(Regression):
    """Some parameters are used by one rank only, some by none."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes = nn.Linear(8, 1)
        self.never = nn.Linear(8, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + self.sometimes(batch[0]).mean() if self.global_rank == 0 else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.5)


def test_unused_parameters_are_treated_as_under_ddp() -> None:
    from itwinai.strategies import DDPStrategy, HorovodStrategy

    L.seed_everything(5, verbose=False)
    first, second = Unused(), Unused()
    second.load_state_dict(first.state_dict())
    never = first.never.weight.detach().clone()
    ddp = options_run(DDPStrategy(find_unused_parameters=True), 2, first)
    horovod = options_run(HorovodStrategy(find_unused_parameters=True), 2, second)
    assert relative_difference(horovod, ddp) < 1e-6
    assert torch.equal(second.never.weight, never)  # no weight decay where nobody has a gradient


def test_unused_parameters_are_an_error_unless_expected() -> None:
    from itwinai.strategies import HorovodStrategy

    with pytest.raises(UnusedParametersError, match="never.weight.*find_unused_parameters=True"):
        options_run(HorovodStrategy(), 2, Unused())


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_evaluates_a_checkpoint(stage: int, tmp_path: Path) -> None:
    L.seed_everything(5, verbose=False)
    module = Regression()
    checkpoint = ModelCheckpoint(tmp_path, filename="end")
    trainer = make_trainer(
        f"deepspeed_stage_{stage}", 2, max_epochs=2, enable_checkpointing=True, callbacks=[checkpoint]
    )
    trainer.fit(module, loader(4), loader(4))
    (trained,) = trainer.validate(module, loader(4))
    fresh = Regression()
    other = make_trainer(f"deepspeed_stage_{stage}", 2)
    (loaded,) = other.validate(fresh, loader(4), ckpt_path=checkpoint.best_model_path)
    assert loaded == pytest.approx(trained, rel=1e-5)
    (tested,) = other.test(fresh, loader(4), ckpt_path=checkpoint.best_model_path)
    assert tested == pytest.approx(trained, rel=1e-5)
    assert relative_difference(weights(fresh), weights(module)) < 1e-6


class Remembers(Regression):
    """Has attributes that come into being while it is trained."""

    def on_fit_start(self) -> None:
        self.of_fit = 1
        self.net.of_fit = "one"


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_3", "horovod"])
def test_attributes_that_were_made_in_a_fit_stay(strategy: str) -> None:
    """DeepSpeed hangs attributes of its own on modules, which have to go; the user's do not."""
    local, module = Remembers(), Remembers()
    make_trainer("auto", 1, max_epochs=1, limit_train_batches=2).fit(local, loader(4))
    make_trainer(strategy, 2, max_epochs=1, limit_train_batches=2).fit(module, loader(4))
    assert (module.of_fit, module.net.of_fit) == (1, "one")
    for one, other in zip(module.modules(), local.modules(), strict=True):
        assert set(vars(one)) == set(vars(other))


# ------------------------------------------------------------------------------------------------- other layouts


def test_one_worker_runs_in_this_process(run_command: RunCommand, tmp_path: Path) -> None:
    """With one worker nothing is launched, and one strategy leaves nothing behind that disturbs the next."""
    script = tmp_path / "one_worker.py"
    script.write_text(
        "import os\n"
        "from tests.support.cases import *\n"
        "reference = run_case(CASES[4], 'auto', 1)['weights']\n"
        "for name in ('ddp', 'horovod', 'deepspeed_stage_0', 'deepspeed_stage_3', 'horovod', 'ddp'):\n"
        "    result = run_case(CASES[4], name, 1)\n"
        "    assert relative_difference(result['weights'], reference) < 1e-6, name\n"
        "    assert 'HOROVOD_RANK' not in os.environ\n"
        "print('all alike')\n"
    )
    ended = run_command(python(str(script)))
    assert ended.code == 0, ended.output
    assert "all alike" in ended.output


def test_workers_started_by_hand(tmp_path: Path) -> None:
    """Processes that somebody has given LOCAL_RANK are workers, and train together."""
    import os
    import subprocess

    from itwinai.launchers.local import free_port
    from tests.conftest import REPOSITORY

    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\n"
        "from tests.support.cases import *\n"
        "trainer = make_trainer('auto', 2, max_epochs=1)\n"
        "trainer.fit(Regression(), loader(4))\n"
        "open(sys.argv[1], 'w').write(f'{trainer.global_rank} {trainer.world_size} {trainer.global_step}')\n"
    )
    common = {"PYTHONPATH": str(REPOSITORY), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            python(str(script), str(tmp_path / f"{rank}")),
            env={**os.environ, **common, "LOCAL_RANK": str(rank), "NODE_RANK": "0"},
        )
        for rank in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["0 2 13", "1 2 13"]


def test_two_nodes_by_hand(tmp_path: Path) -> None:
    """The same script, started once per node: each caller launches its own workers and gets the result."""
    import os
    import subprocess

    from itwinai.launchers.local import free_port
    from tests.conftest import REPOSITORY

    script = tmp_path / "node.py"
    script.write_text(
        "import sys, torch\n"
        "from tests.support.cases import *\n"
        "L.seed_everything(11, verbose=False)\n"
        "module = Regression('adamw')\n"
        "trainer = make_trainer('ddp', 1, num_nodes=2, max_epochs=1)\n"
        "trainer.fit(module, loader(4, shuffle=True))\n"
        "torch.save([p.detach() for p in module.parameters()] + [trainer.global_step], sys.argv[1])\n"
    )
    port = str(free_port())
    outs = [tmp_path / f"node-{rank}.pt" for rank in range(2)]
    common = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [
        subprocess.Popen(python(str(script), str(out)), env={**common, "NODE_RANK": str(rank)})
        for rank, out in enumerate(outs)
    ]
    assert [node.wait(120) for node in nodes] == [0, 0]
    first, second = (torch.load(out) for out in outs)
    assert first[-1] == second[-1] == 13
    assert all(torch.equal(one, other) for one, other in zip(first[:-1], second[:-1], strict=True))
    L.seed_everything(11, verbose=False)
    module = Regression("adamw")
    make_trainer("auto", 1, max_epochs=1).fit(module, loader(8, shuffle=True))
    together = torch.cat([weight.flatten() for weight in first[:-1]])
    assert relative_difference(together, weights(module)) < 1e-6
