"""Offer stock lightning's command line with the arguments that `itwinai` gives to its own."""

from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI(subclass_mode_model=True, subclass_mode_data=True, save_config_kwargs={"overwrite": True})
