"""``itwinai drought report``: the tables and figures of the README, from training to pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from itwinai_drought.data.datamodule import DroughtDataModule


def main(arguments: list[str]) -> int:
    """Run the command; what is trained already is not trained again."""
    options = _parser().parse_args(arguments)
    from itwinai_drought.model import DroughtLSTM
    from itwinai_drought.report import SURROGATE, WITHOUT_MAPS, compare, train, write_scores
    from itwinai_drought.report_figures import draw_scores, draw_speed, speed_table
    from itwinai_drought.speed import measure_speed

    options.output.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load(options.config.read_text())["data"]["init_args"]
    data, without = DroughtDataModule(**settings), DroughtDataModule(**settings | {"statics": []})
    data.setup("test")
    without.setup("test")
    no_maps = ["--model.statics=[]", "--data.statics=[]"]
    surrogates = {
        name: [
            (train(options.config, options.output / "runs" / f"{folder}-{seed}", seed, flags), of_surrogate)
            for seed in range(options.seeds)
        ]
        for name, folder, flags, of_surrogate in (
            (SURROGATE, "lstm", [], data),
            (WITHOUT_MAPS, "without-maps", no_maps, without),
        )
    }
    targets = list(data.options.targets)
    results = compare(data, surrogates)
    text = write_scores(results, targets, options.output)
    draw_scores(results, targets, options.output / "scores.png")

    module = DroughtLSTM.load_from_checkpoint(surrogates[SURROGATE][0][0], map_location="cpu")
    speeds = measure_speed(module)
    text += "\n" + speed_table(speeds)
    draw_speed(speeds, options.output / "speed.png")
    (options.output / "tables.md").write_text(text)
    _draw_predictions(options.config, surrogates[SURROGATE][0][0], str(data.options.store), options.output)
    print(text)
    print(f"{options.output}: tables.md, scores.json, scores.png, speed.png, and maps in figures")
    return 0


def _draw_predictions(config: Path, checkpoint: Path, store: str, folder: Path) -> None:
    """Predict the whole region with one surrogate, and draw series, scores and droughts, with the other commands."""
    from itwinai_drought.cli import main as run
    from itwinai_drought.report import run_itwinai

    predictions, grid = folder / "predictions.zarr", folder / "predicted.zarr"
    indices, predicted_indices = folder / "indices.zarr", folder / "predicted-indices.zarr"
    run_itwinai("predict", "-c", config, "--ckpt", checkpoint, "--output", predictions, "--overwrite")
    for command in (
        ["grid", predictions, "--store", store, "--output", grid, "--overwrite"],
        ["indices", store, "--output", indices, "--overwrite"],
        ["indices", grid, "--reference", store, "--output", predicted_indices, "--overwrite"],
        ["figures", "--store", store, "--predictions", grid, "--indices", indices]
        + ["--predicted-indices", predicted_indices, "--output", folder / "figures"],
    ):
        run([str(word) for word in command])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "itwinai drought report",
        description="Train the surrogate with several seeds, with and without static maps, and compare it with "
        "climatology, persistence and a linear model with memory, on cells and years that none has seen. What is "
        "trained already is not trained again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("-c", "--config", type=Path, default=Path("configs/training.yaml"), help="as of itwinai fit")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of tables, figures and runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs of each surrogate")
    return parser
