"""Under an outer launcher the trainer joins, and finds its place."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from itwinai.errors import ConfigurationError
from itwinai.launchers.environment import PlacedEnvironment, find_outer_environment
from tests.conftest import RunCommand, python
from tests.support.cases import Case, Regression, loader, make_trainer, relative_difference
from tests.support.interrupted import train
from tests.support.slurm import slurm_cluster

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "job-1",
}
HOROVODRUN = {
    "HOROVOD_RANK": "3",
    "HOROVOD_SIZE": "4",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_CROSS_RANK": "1",
    "HOROVOD_CROSS_SIZE": "2",
}
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "7"}
_TORCHRUN_NAMES = ("RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "WORLD_SIZE")
TORCHRUN = dict.fromkeys(_TORCHRUN_NAMES, "1")


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_none_by_hand() -> None:
    assert find_outer_environment() is None


def test_mpirun_on_several_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, OPEN_MPI)
    with pytest.raises(ConfigurationError, match="Set MASTER_ADDR"):
        find_outer_environment()
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    environment = find_outer_environment()
    assert isinstance(environment, PlacedEnvironment)
    rank_info = environment.rank_info
    assert (rank_info.rank, rank_info.world_size, rank_info.local_rank, rank_info.node_rank, rank_info.num_nodes) == (
        5,
        6,
        1,
        2,
        3,
    )
    assert rank_info.main_address == "node-a"


def test_jobs_get_their_own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**OPEN_MPI, "MASTER_ADDR": "node-a"})
    first = find_outer_environment()
    monkeypatch.setenv("PMIX_NAMESPACE", "job-2")
    second = find_outer_environment()
    assert first is not None and second is not None
    assert first.main_port != second.main_port
    monkeypatch.setenv("MASTER_PORT", "4711")
    chosen = find_outer_environment()
    assert chosen is not None and chosen.main_port == 4711


def test_horovodrun(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**HOROVODRUN, "MASTER_ADDR": "node-a"})
    environment = find_outer_environment()
    assert isinstance(environment, PlacedEnvironment)
    assert (environment.rank_info.rank, environment.rank_info.node_rank, environment.rank_info.num_nodes) == (3, 1, 2)


def test_slurm_needs_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an sbatch script without srun there is one process, whatever SLURM_NTASKS says."""
    set_all(monkeypatch, SLURM)
    assert find_outer_environment() is None
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert isinstance(find_outer_environment(), SLURMEnvironment)


def test_mpirun_and_torchrun_inside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**SLURM, "SLURM_STEP_ID": "0"})
    with monkeypatch.context() as torchrun:
        set_all(torchrun, TORCHRUN)
        assert isinstance(find_outer_environment(), TorchElasticEnvironment)
    set_all(monkeypatch, {**OPEN_MPI, "MASTER_ADDR": "node-a"})
    environment = find_outer_environment()
    assert isinstance(environment, PlacedEnvironment) and environment.rank_info.launcher == "mpirun"


def test_auto_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a strategy, two workers of an outer launcher train together and not each for itself."""
    set_all(monkeypatch, {**TORCHRUN, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    trainer = make_trainer("auto", "auto")
    assert trainer.strategy.strategy_name == "ddp"
    assert trainer.world_size == 2
    assert trainer.strategy.launcher is None


def test_srun_on_two_nodes(
    references: dict[str, Any], run_command: RunCommand, tmp_path: Path, slurm: dict[str, str]
) -> None:
    """As in a batch script of your own; `tests/slurm` has every strategy."""
    case, out = Case("adamw", accumulate=3), tmp_path / "results.pt"
    script = ["tests/support/joined.py", "ddp", "2", str(out), str(case)]
    ended = run_command(["srun", "-N2", "-n2", "--export=ALL", *python(*script)], MASTER_ADDR="127.0.0.1", **slurm)
    assert ended.code == 0, ended.output
    assert "2 workers launched by srun" in ended.output
    (result,) = torch.load(out)
    assert relative_difference(result["weights"], references[str(case)]["weights"]) < 1e-6


def test_job_that_slurm_queues_again(tmp_path: Path, slurm: dict[str, str], run_command: RunCommand) -> None:
    """SIGUSR1, as ``#SBATCH --signal`` sends it: the job stops, is queued again, and goes on where it was."""
    reference = tmp_path / "reference"
    reference.mkdir()
    weights = train("auto", 1, reference)
    script = shlex.join(python("tests/support/interrupted.py", "ddp", "2", str(tmp_path), "slow", "requeued"))
    (tmp_path / "job").write_text(f"#!/bin/bash\nsrun -n2 {script}\n")
    output = tmp_path / "output"
    options = ["--requeue", "-n2", "-N1", "--export=ALL", "--open-mode=append", f"--output={output}"]
    submitted = run_command(["sbatch", "--parsable", *options, str(tmp_path / "job")], MASTER_ADDR="127.0.0.1", **slurm)
    assert submitted.code == 0, submitted.output
    job = submitted.output.strip()

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, output.read_text() if output.exists() else "no output"
            time.sleep(0.2)

    def state() -> str:
        return run_command(["squeue", "-h", "-o", "%T", "-j", job], **slurm).output.strip()

    wait_for(lambda: all((tmp_path / f"{rank}.pid").exists() for rank in range(2)))
    assert run_command(["scancel", "--signal=USR1", job], **slurm).code == 0

    wait_for(lambda: state() == "PENDING")
    # By itself it would wait for two minutes. Within the second of its end the node refuses it: its credential for the
    # first run was revoked in that second.
    later = run_command(["scontrol", "update", f"JobId={job}", "StartTime=now+3"], **slurm)
    assert later.code == 0, later.output
    wait_for(lambda: (tmp_path / "weights.pt").exists() and state() in ("", "COMPLETED"))
    text = output.read_text()
    assert "stopped by SIGUSR1" in text and "preempted.ckpt" in text, text
    assert relative_difference(torch.load(tmp_path / "weights.pt"), weights) < 1e-6


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.conftest import require_programs
    from tests.support.slurm import missing_programs

    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def test_ray_train_worker_joins(local_ray: None, tmp_path: Path) -> None:
    """Inside Ray Train's own workers nothing is launched: the group that exists is used."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def train() -> None:
        import lightning

        lightning.seed_everything(11, verbose=False)
        module = Regression()
        trainer = make_trainer("ray", "auto", max_epochs=1)
        assert trainer.strategy.launcher is None
        assert trainer.world_size == 2
        trainer.fit(module, loader(4, shuffle=True))
        if trainer.is_global_zero:
            torch.save([parameter.detach() for parameter in module.parameters()], tmp_path / "weights.pt")

    TorchTrainer(
        train, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=str(tmp_path))
    ).fit()
    joined = torch.cat([weight.flatten() for weight in torch.load(tmp_path / "weights.pt")])

    import lightning

    lightning.seed_everything(11, verbose=False)
    module = Regression()
    make_trainer("auto", 1, max_epochs=1).fit(module, loader(8, shuffle=True))
    local = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert relative_difference(joined, local) < 1e-6
