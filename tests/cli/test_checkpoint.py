"""`itwinai checkpoint`: what it shows and writes, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from itwinai.checkpoints import portable_file
from itwinai.cli.main import main
from tests.support.cases import Regression, loader, make_trainer


class Exported(Regression):
    """Says what its forward takes."""

    def __init__(self) -> None:
        super().__init__("adamw")
        self.example_input_array = torch.ones(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, ``a.ckpt``, and the module that it was made of."""
    folder = tmp_path_factory.mktemp("cli")
    trainer, module = make_trainer("auto", 1, max_epochs=1), Exported()
    trainer.fit(module, loader(8))
    trainer.save_checkpoint(folder / "a.ckpt")
    torch.save(module.state_dict(), folder / "weights.expected")
    return folder


def expected(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "weights.expected")
    return weights


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "inspect", str(folder / "a.ckpt")]) == 0
    shown = capsys.readouterr().out
    for line in (
        "format       itwinai 1, verified",
        "epoch, step  1, 13",
        "weights      161 values in 4 tensors, 644 B",
        "optimizers   4 parameters in 1 groups (exp_avg, exp_avg_sq, step)",
        "resumes      exactly, under any strategy",
        "  net.0.weight  (16, 8)              float32",
    ):
        assert line in shown.splitlines(), shown


def test_inspect_a_file_of_lightnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"x": torch.ones(2)}, "epoch": 1}, tmp_path / "b.ckpt")
    assert main(["checkpoint", "inspect", str(tmp_path / "b.ckpt")]) == 0
    shown = capsys.readouterr().out
    assert "no manifest: not written by itwinai" in shown and "no: weights only" in shown


def test_verify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "a.ckpt").read_bytes()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "good.ckpt").write_bytes(whole)
    assert main(["checkpoint", "verify", str(tmp_path)]) == 0
    (tmp_path / "bad.ckpt").write_bytes(whole[:-1])
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"DAMAGED  {tmp_path / 'bad.ckpt'}: its end is cut off"
    assert lines[0].startswith(f"valid    {tmp_path / 'deep' / 'good.ckpt'} (step 13, ") and lines[2] == lines[0]


def test_plain_weights(folder: Path) -> None:
    assert main(["checkpoint", "convert", str(folder / "a.ckpt"), str(folder / "w.pt")]) == 0
    weights = torch.load(folder / "w.pt")
    assert all(torch.equal(weights[name], value) for name, value in expected(folder).items())


@pytest.mark.parametrize("command", ["convert", "export"])
def test_safetensors(command: str, folder: Path) -> None:
    from safetensors.torch import load_file

    target = folder / f"{command}.safetensors"
    assert main(["checkpoint", command, str(folder / "a.ckpt"), str(target)]) == 0
    weights = load_file(target)
    assert all(torch.equal(weights[name], value) for name, value in expected(folder).items())


def test_to_and_from_an_engines_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = tmp_path / "engine", tmp_path / "back.ckpt"
    assert main(["checkpoint", "convert", str(folder / "a.ckpt"), str(there)]) == 0
    assert main(["checkpoint", "convert", str(there), str(back)]) == 1
    assert "If you trust it, say --unsafe" in capsys.readouterr().err
    assert main(["checkpoint", "convert", "--unsafe", str(there), str(back)]) == 0
    weights = portable_file.read(back)["state_dict"]
    assert all(torch.equal(weights[name], value) for name, value in expected(folder).items())


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_programs(ending: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / f"a.{ending}"
    assert main(["checkpoint", "export", str(folder / "a.ckpt"), str(target)]) == 0  # the checkpoint names its class
    module = Exported()
    module.load_state_dict(expected(folder))
    x = torch.randn(5, 8)  # the example has two
    if ending == "pt2":
        result = torch.export.load(target).module()(x)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(target))
        (values,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        result = torch.from_numpy(values)
    torch.testing.assert_close(result, module(x).detach())
    assert os.listdir(tmp_path) == [target.name]


def test_weights_beside_a_large_program(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 1.5 GiB torch writes the weights into a file of their own."""
    import onnxruntime
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    target = tmp_path / "a.onnx"
    arguments = [str(folder / "a.ckpt"), str(target), "--module", "tests.cli.test_checkpoint.Exported"]
    assert main(["checkpoint", "export", *arguments]) == 0
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "a.onnx.data"]
    session = onnxruntime.InferenceSession(str(target))
    x = torch.randn(2, 8)
    (values,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    module = Exported()
    module.load_state_dict(expected(folder))
    torch.testing.assert_close(torch.from_numpy(values), module(x).detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nothing.ckpt"], "There is no checkpoint"),
        (["export", "{folder}/old.ckpt", "{folder}/x.onnx"], "does not name the class of its module"),
        (["export", "{a}", "{folder}/x.onnx", "--module", "no.Such"], "No module named 'no'"),
        (["export", "{a}", "{folder}/x.onnx", "--module", "tests.support.cases.Regresion"], "mean 'Regression'"),
        (
            ["export", "{a}", "{folder}/x.txt", "--module", "tests.cli.test_checkpoint.Exported"],
            "Unknown file extension in",
        ),
        (["export", "{a}", "{folder}/x.pt2", "--module", "tests.support.cases.Regression"], "no example_input_array"),
        (["convert", "{folder}", "{folder}/x.ckpt"], "no DeepSpeed engine wrote it"),
        (["convert", "{a}", "{folder}/x.xyz"], "use .pt, .pth, .bin or .safetensors"),
        (["verify", "{folder}/none"], "there is no .ckpt file in"),
    ],
)
def test_refusals(arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "none").mkdir(exist_ok=True)
    torch.save({"state_dict": {}}, folder / "old.ckpt")
    given = [argument.format(a=folder / "a.ckpt", folder=folder) for argument in arguments]
    assert main(["checkpoint", *given]) == 1
    assert message in capsys.readouterr().err


def test_what_could_execute_code_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "module": nn.Linear(1, 1)}, tmp_path / "a.ckpt")
    assert main(["checkpoint", "inspect", str(tmp_path / "a.ckpt")]) == 1
    shown = capsys.readouterr().err
    assert "torch.nn.modules.linear.Linear" in shown and "Traceback" not in shown
    assert main(["checkpoint", "inspect", "--unsafe", str(tmp_path / "a.ckpt")]) == 0
