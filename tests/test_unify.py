"""`pytorch_lightning` and `lightning.pytorch` as one package."""

from __future__ import annotations

from typing import Any

import pytest

from itwinai import ItwinaiTrainer
from itwinai.errors import ConfigurationError
from tests.conftest import RunCommand, python

MODULE = """
import torch
import pytorch_lightning as pl
from lightning_fabric.utilities.seed import seed_everything
from pytorch_lightning.callbacks.early_stopping import EarlyStopping

class Foreign(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).mean()
        self.log("loss", loss, sync_dist=True)
        return loss

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 1)), 2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""

SCRIPT = """
import itwinai
{unify}
from foreign import EarlyStopping, Foreign, pl
import lightning.pytorch
import lightning.fabric.utilities.seed
from foreign import seed_everything

assert pl is lightning.pytorch
assert lightning.pytorch.__spec__.name == pl.__name__ == "lightning.pytorch"
assert EarlyStopping is lightning.pytorch.callbacks.EarlyStopping
assert seed_everything is lightning.fabric.utilities.seed.seed_everything
trainer = itwinai.ItwinaiTrainer(
    strategy="{strategy}", devices=2, accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
    callbacks=[EarlyStopping("loss")], enable_progress_bar=False,
)
trainer.fit(Foreign())
print("steps", trainer.global_step)
"""


@pytest.mark.parametrize(
    ("strategy", "unify", "variable"),
    [("ddp", "itwinai.unify_lightning()", ""), ("ddp", "", "1"), ("ray", "itwinai.unify_lightning()", "")],
)
def test_module_of_the_other_package_trains(
    strategy: str, unify: str, variable: str, run_command: RunCommand, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(SCRIPT.format(unify=unify, strategy=strategy))
    if variable:
        monkeypatch.setenv("ITWINAI_UNIFY_LIGHTNING", variable)
    ended = run_command(python(str(tmp_path / "script.py")), fresh=True)
    assert ended.code == 0, ended.output
    assert "steps 4" in ended.output


def test_once_imported_they_cannot_be_one(run_command: RunCommand) -> None:
    ended = run_command(python("-c", "import pytorch_lightning, itwinai; itwinai.unify_lightning()"))
    assert ended.code == 1
    assert "ConfigurationError: Imported already: pytorch_lightning" in ended.output


def test_a_module_of_neither_is_not_found(run_command: RunCommand) -> None:
    ended = run_command(
        python("-c", "import itwinai; itwinai.unify_lightning(); import pytorch_lightning.nothing_of_this_name")
    )
    assert "No module named 'pytorch_lightning.nothing_of_this_name'" in ended.output


class LightningModule:
    """Pretends to be that of the other package."""

    __module__ = "pytorch_lightning.core.module"


class Foreign(LightningModule):
    """A module of the other package."""


def test_what_is_of_the_other_package_is_told() -> None:
    message = r"Foreign uses the package pytorch_lightning, a copy of lightning.pytorch.*unify_lightning\(\)"
    trainer = ItwinaiTrainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigurationError, match=message):
        trainer.fit(Foreign())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=message):
        ItwinaiTrainer(accelerator="cpu", devices=1, callbacks=[Foreign()])
