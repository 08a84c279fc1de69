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
    print(text)
    print(f"{options.output}: tables.md, scores.json, scores.png, speed.png")
    return 0


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
