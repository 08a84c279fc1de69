"""What `itwinai.compat.noise` takes for granted about private names."""

from __future__ import annotations

import inspect
import logging
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors import signal_connector
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities import rank_zero as pytorch_rank_zero

from itwinai.checkpoints.export import export
from itwinai.compat import noise as compat_noise
from tests.conftest import RunCommand, python


def test_only_known_warnings_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with compat_noise.known_noise_silenced():
            CombinedLoader([[1, 2]])
            seed_everything()
            warnings.warn("the user's own", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["the user's own"]


def test_noise_is_silenced_for_a_while(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compat_noise.VERBOSE, raising=False)
    filters = list(warnings.filters)
    with compat_noise.known_noise_silenced():
        Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU. If you have GPU")
        signal_connector.log.info("SLURM auto-requeueing enabled. Setting signal handlers.")
        pytorch_rank_zero.rank_zero_info("the user's own")
    assert [record.getMessage() for record in caplog.records] == ["the user's own"]
    assert 'log.info("SLURM auto-requeueing enabled.' in inspect.getsource(signal_connector)
    assert list(warnings.filters) == filters
    pytorch_rank_zero.rank_zero_info("GPU available: False, used: False")
    assert len(caplog.records) == 2
    monkeypatch.setenv(compat_noise.VERBOSE, "1")
    with compat_noise.known_noise_silenced():
        Trainer(accelerator="cpu", devices=1, logger=True)
    said = [record.getMessage()[:13] for record in caplog.records[2:]]
    assert said == ["GPU available", "TPU available", "💡 Tip: For se"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_concerns_all_ranks_is_said_by_rank_0(rank: int, tmp_path: Path) -> None:
    state = {**ModelCheckpoint(tmp_path / "first").state_dict(), "best_model_path": ""}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with compat_noise.known_noise_silenced(rank):
            ModelCheckpoint(tmp_path / "second").load_state_dict(state)  # by Lightning, on each rank
            warnings.warn("the user's own", stacklevel=1)
    assert [str(warning.message)[:14] for warning in caught] == ["The dirpath ha"] * (rank == 0) + ["the user's own"]


def test_exports_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(torch.nn.LSTM(1, 2, batch_first=True), tmp_path / "a.onnx", torch.zeros(2, 3, 1))
    assert [str(warning.message) for warning in caught] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_torch_prints_errors_alone_in_workers(run_command: RunCommand) -> None:
    code = "import itwinai.compat as c, torch; c.silence_sockets() if %s else 0; "
    code += "import torch.distributed as d; s = d.TCPStore('localhost', 0, 1, True); "
    code += "d.TCPStore('localhost', s.port, 1, False).wait(['never'], __import__('datetime').timedelta(seconds=0.2))"
    assert "[c10d]" in run_command(python("-c", code % "False")).output
    assert "[c10d]" not in run_command(python("-c", code % "True")).output
