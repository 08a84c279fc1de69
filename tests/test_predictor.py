"""A predictor gives what the trainer's `predict` gives, however inputs come and whoever asks at the same time."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from itwinai import Predictor
from itwinai.errors import CheckpointError, ConfigurationError, ExportError, MissingCheckpointError, PredictorError
from tests.conftest import RunCommand, python
from tests.support.cases import make_trainer
from tests.support.predicted import Doubling, Structured, Transferred

THREAD = "itwinai-predictor"


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith(THREAD)]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    for thread in threads():
        thread.join(30)
    assert threads() == []


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


# -------------------------------------------------------------------------------------------------- what is loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a short fit: of itwinai with its weights only and with all, and of lightning."""
    folder = tmp_path_factory.mktemp("trained")
    module = Transferred(4, bias=0.5)
    data = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4)
    trainer = make_trainer("ddp", 2, max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "whole.ckpt")
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    stock = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    stock.strategy.connect(module)
    stock.save_checkpoint(folder / "lightning.ckpt")
    torch.save({"no": "weights"}, folder / "nothing.ckpt")
    torch.save(
        {**torch.load(folder / "whole.ckpt"), "module_class": "tests.support.predicted.Gone"}, folder / "gone.ckpt"
    )
    torch.save({"state_dict": module.state_dict(), "object": nn.Linear(1, 1)}, folder / "pickled.ckpt")
    torch.save(predicted(module), folder / "expected")
    return folder


X = torch.linspace(-1, 1, 40).reshape(10, 4)


def predicted(module: L.LightningModule, x: Tensor = X, **options: Any) -> Tensor:
    """Return what lightning's trainer predicts."""
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, **options
    )
    batches = trainer.predict(module, DataLoader(TensorDataset(x), batch_size=4))
    return torch.cat(batches)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whole", {}),
        ("weights", {}),
        ("whole", {"module_class": Transferred, "batch_size": 3}),
        ("lightning", {"module_class": "tests.support.predicted.Transferred"}),
    ],
)
def test_checkpoint_gives_what_the_trainer_predicts(name: str, options: dict[str, Any], folder: Path) -> None:
    expected = torch.load(folder / "expected")
    with Predictor.load(folder / f"{name}.ckpt", **options) as predictor:
        assert predictor.module.hparams == {"width": 4, "bias": 0.5}
        torch.testing.assert_close(predictor((X,)), expected)
        torch.testing.assert_close(predictor([X.numpy()]), expected.numpy())


def test_init_args_take_the_place_of_hyperparameters(folder: Path) -> None:
    with Predictor.load(folder / "whole.ckpt", init_args={"bias": 1e6}) as predictor:
        assert (predictor((X,)) > 1e5).all()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("wole.ckpt", {}, MissingCheckpointError, r"no checkpoint .*Did you mean '.*/whole.ckpt'"),
        ("", {}, CheckpointError, r"is a folder, .*\(gone.ckpt, lightning.ckpt"),
        ("nothing.ckpt", {}, CheckpointError, "no 'state_dict'"),
        ("lightning.ckpt", {}, ConfigurationError, "does not name the class of its module. Pass module_class"),
        ("gone.ckpt", {}, ConfigurationError, "'tests.support.predicted.Gone'.*has no class 'Gone'.* module_class"),
        ("whole.ckpt", {"module_class": "no.such.Thing"}, ConfigurationError, "No module named 'no'.* PYTHONPATH"),
        ("whole.ckpt", {"module_class": "Transferred"}, ConfigurationError, "package.module.Class"),
        ("whole.ckpt", {"module_class": "torch.nn.Linear"}, ConfigurationError, "not a LightningModule"),
        ("whole.ckpt", {"module_class": Doubling}, CheckpointError, "do not match Doubling: .*Missing key"),
        ("pickled.ckpt", {"module_class": Transferred}, CheckpointError, "torch.nn.modules.linear.Linear"),
        (
            "pickled.ckpt",
            {"module_class": Transferred, "weights_only": False},
            CheckpointError,
            r"no value for width of Transferred: .* Pass init_args=\{'width': ...\}",
        ),
        ("whole.ckpt", {"device": "cuda:7"}, ConfigurationError, "device='cuda:7'"),
        ("whole.ckpt", {"device": "gpus"}, ConfigurationError, "device='gpus'"),
        ("whole.ckpt", {"precision": "bf17"}, ConfigurationError, "precision='bf17'"),
        ("whole.ckpt", {"batch_size": 0}, ConfigurationError, "batch_size must be at least 1"),
        ("whole.ckpt", {"max_wait": -1}, ConfigurationError, "max_wait must be a number of seconds"),
        ("whole.ckpt", {"method": "predict"}, ConfigurationError, "'predict_step' or 'forward'"),
        ("runs:/0123456789abcdef0123456789abcdef/model", {}, MissingCheckpointError, "MLFLOW_TRACKING_URI"),
    ],
)
def test_errors(
    name: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(error, match=f"(?s){message}"):
        Predictor.load(name if ":" in name else folder / name, **options)


def test_class_of_a_script_is_found_within_it(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = {**torch.load(folder / "whole.ckpt"), "module_class": "__main__.Own"}
    torch.save(content, tmp_path / "script.ckpt")
    with pytest.raises(ConfigurationError, match="`__main__` is the script that was run"):
        Predictor.load(tmp_path / "script.ckpt")
    import __main__

    monkeypatch.setattr(__main__, "Own", Transferred, raising=False)
    with Predictor.load(tmp_path / "script.ckpt") as predictor:
        assert len(predictor((X,))) == len(X)


# ------------------------------------------------------------------------------------------------ inputs, outputs


@given(
    rows=st.integers(0, 23),
    batch_size=st.integers(1, 9),
    kind=st.sampled_from(["numpy", "tensor", "mixed"]),
    scale=st.sampled_from([1, 2.5, torch.tensor(3.0)]),
)
def test_nested_rows_come_back_in_their_order(rows: int, batch_size: int, kind: str, scale: Any) -> None:
    x, y, z = torch.arange(rows * 2).reshape(rows, 2) / 4, torch.arange(rows)[:, None] * 10, torch.arange(rows)
    given = {"x": x, "more": (y, z), "scale": scale}
    if kind != "tensor":
        given |= {"x": x.numpy().astype("float64"), "more": (y if kind == "mixed" else y.numpy(), z.numpy()[::1])}
    if kind == "numpy" and isinstance(scale, Tensor):
        given["scale"] = scale.numpy()
    with Predictor(Structured(), batch_size=batch_size) as predictor:
        output = predictor(given)
    low, high = output["pair"]
    assert type(output["pair"]).__name__ == "Pair"
    assert isinstance(low, np.ndarray if kind == "numpy" else Tensor) and isinstance(output["array"], np.ndarray)
    np.testing.assert_array_equal(low, x * scale - 1)
    np.testing.assert_array_equal(high, x * scale + y)
    assert output["names"] == [f"row {row}" for row in range(rows)]
    assert [list(one) for one in output["ragged"]] == [list(range(row % 5)) for row in range(rows)]
    np.testing.assert_array_equal(output["array"], z)
    assert output["nothing"] is None


class Classifier(L.LightningModule):
    """Ten values per row; takes the first part of its batch, or the first row of an array."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 10)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0]).softmax(-1)


@pytest.mark.parametrize("rows", [1, 2, 10])
def test_array_for_a_step_that_unpacks_its_batch(rows: int) -> None:
    """With ten rows there are ten values, of the classes of the first row."""
    with Predictor(Classifier()) as predictor:
        with pytest.raises(PredictorError, match=r"one row per sample: .*pass a tuple: predictor\(\(x,\)\)"):
            predictor(torch.ones(rows, 4))
        assert predictor((torch.ones(rows, 4),)).shape == (rows, 10)


def test_module_cannot_change_the_inputs() -> None:
    class Changing(L.LightningModule):
        def predict_step(self, batch: Tensor) -> Tensor:
            return batch.mul_(2)

    array = np.ones((3, 2), dtype="float32")
    with Predictor(Changing()) as predictor:
        assert (predictor(array) == 2).all() and (array == 1).all()
        array.flags.writeable = False
        assert (predictor(array[::-1]) == 2).all()


class Counting(L.LightningModule):
    """Leaves out rows, depending on their values."""

    def predict_step(self, batch: Tensor) -> Tensor:
        return batch[batch[:, 0] < 5]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (3.0, "no array with rows"),
        ({"x": torch.ones(3), "y": np.ones(4)}, r"different numbers of rows \(\['x'\]: 3, \['y'\]: 4\)"),
        (np.array(["a"]), "An array of <U1 does not hold numbers"),
        (pd.DataFrame({"a": [1], "name": ["x"]}), "columns name are not numbers"),
        (torch.tensor([[1.0], [9.0]]), "one row per sample"),
    ],
)
def test_inputs_and_outputs_without_rows(inputs: Any, message: str) -> None:
    with Predictor(Counting()) as predictor:
        for _ in range(2):
            with pytest.raises(PredictorError, match=message):
                predictor(inputs)
        assert len(predictor(torch.ones(3, 1))) == 3
        with pytest.raises(PredictorError, match="differs from the form for other inputs"):
            predictor(torch.tensor([[1.0], [9.0]]))


def test_frames() -> None:
    class Columns(L.LightningModule):
        def forward(self, height: Tensor, age: Tensor) -> dict[str, Any]:
            return {
                "product": height * age,
                "more": {"pair": torch.stack([height, age], 1)},
                "text": [f"{a}" for a in age],
            }

    class FromDict(L.LightningModule):
        def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
            return batch["age"].double(), batch["height"][:, None]

    frame = pd.DataFrame({"age": [1, 2, 3], "height": [1.5, 2.5, 3.5]}, index=["a", "b", "c"])
    with Predictor(Columns(), batch_size=2, method="forward") as predictor:
        expected = {"product": [1.5, 5, 10.5], "more.pair.0": [1.5, 2.5, 3.5], "more.pair.1": [1.0, 2, 3]}
        expected_frame = pd.DataFrame({**expected, "text": ["1", "2", "3"]}, index=frame.index)
        pd.testing.assert_frame_equal(predictor(frame), expected_frame, check_dtype=False)
        assert list(predictor(frame)["text"]) == ["1", "2", "3"]
    with Predictor(FromDict()) as predictor:
        expected_frame = pd.DataFrame({"prediction.0": [1.0, 2, 3], "prediction.1": frame["height"]}, index=frame.index)
        pd.testing.assert_frame_equal(predictor(frame), expected_frame, check_dtype=False)
    with Predictor(Doubling()) as predictor:
        doubled = predictor(frame)
        assert list(doubled.columns) == ["prediction.0", "prediction.1"] and list(doubled.index) == ["a", "b", "c"]
        np.testing.assert_array_equal(doubled, frame * 2)
        np.testing.assert_array_equal(predictor(frame["height"]), frame["height"] * 2)


def test_modules_of_torch_and_forward_on_request() -> None:
    layer = nn.Linear(2, 3)
    x = torch.ones(5, 2)
    with Predictor(layer) as predictor:
        torch.testing.assert_close(predictor(x), layer(x).detach())
    with pytest.raises(ConfigurationError, match="no predict_step"):
        Predictor(layer, method="predict_step")
    with Predictor(nn.Bilinear(2, 2, 3)) as predictor:
        assert predictor((x, x)).shape == (5, 3)
        assert predictor({"input1": x, "input2": x}).shape == (5, 3)


@pytest.mark.parametrize("precision", [None, "bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision: Any) -> None:
    torch.manual_seed(0)
    module = Transferred(4)
    expected = predicted(module, precision=precision)
    with Predictor(module, precision=precision, batch_size=4, device="cpu") as predictor:
        torch.testing.assert_close(predictor((X,)), expected, rtol=0, atol=0)
        array = predictor((X.numpy(),))
        assert array.dtype == {torch.bfloat16: "float32"}.get(expected.dtype, str(expected.dtype)[6:])
        assert not torch.is_inference_mode_enabled() and torch.get_default_dtype() == torch.float32
    if precision == "bf16-mixed":
        assert not torch.equal(expected.float(), predicted(module))


# -------------------------------------------------------------------------------------------------- several callers


@given(
    sizes=st.lists(st.tuples(st.integers(0, 7), st.sampled_from([1, 2, 3])), min_size=1, max_size=8),
    batch_size=st.integers(1, 9),
    wait=st.sampled_from([0.0, 0.001]),
)
def test_callers_get_their_own_rows(sizes: list[tuple[int, int]], batch_size: int, wait: float) -> None:
    inputs = [
        torch.full((rows, width), float(i)) + torch.arange(rows)[:, None] for i, (rows, width) in enumerate(sizes)
    ]
    module = Doubling()
    with (
        Predictor(module, batch_size=batch_size, max_wait=wait) as predictor,
        ThreadPoolExecutor(len(inputs)) as pool,
    ):
        outputs = list(pool.map(predictor, inputs))
    for x, output in zip(inputs, outputs, strict=True):
        assert torch.equal(output, 2 * x)
    assert max(module.batches) <= max(batch_size, 3)


class Queued:
    """Callers that wait while a first batch is held up."""

    def __init__(self, module: Doubling, predictor: Predictor, pool: ThreadPoolExecutor) -> None:
        self.module, self.predictor, self.pool = module, predictor, pool
        predictor(torch.ones(5, 2))  # from now on it is known where the rows are
        module.batches.clear()
        module.entered.clear()
        module.gate.clear()
        self.first = pool.submit(predictor, torch.ones(5, 2))
        wait_until(module.entered.is_set)
        self.waiting = 0

    def ask(self, x: Tensor) -> Any:
        self.waiting += 1
        future = self.pool.submit(self.predictor, x)
        pending = self.predictor._batching._thread().pending
        wait_until(lambda: len(pending) == self.waiting)
        return future


@pytest.fixture
def queued() -> Iterator[Queued]:
    module = Doubling()
    with Predictor(module, batch_size=5) as predictor, ThreadPoolExecutor(9) as pool:
        yield Queued(module, predictor, pool)
        module.gate.set()


def test_what_waits_is_joined(queued: Queued) -> None:
    asked = [queued.ask(torch.full((rows, 2), float(rows))) for rows in (1, 2, 1, 3)]
    other = queued.ask(torch.ones(1, 2, dtype=torch.int64))
    queued.module.gate.set()
    for rows, future in zip((1, 2, 1, 3), asked, strict=True):
        assert torch.equal(future.result(), torch.full((rows, 2), 2.0 * rows))
    assert torch.equal(other.result(), torch.full((1, 2), 2.0))
    assert queued.module.batches[:2] == [5, 5]  # 1 + 2 + 1 and one of the three
    assert sorted(queued.module.batches[2:]) == [1, 2, 2]  # the integers, and the two by which their rows are found


def test_failing_input_fails_its_own_caller(queued: Queued) -> None:
    good, bad, fine = (queued.ask(torch.full((1, 2), value)) for value in (1.0, -1.0, 3.0))
    queued.module.gate.set()
    assert torch.equal(good.result(), torch.full((1, 2), 2.0)) and torch.equal(fine.result(), torch.full((1, 2), 6.0))
    with pytest.raises(ValueError, match="a negative number"):
        bad.result()
    assert queued.module.batches == [5, 3, 1, 1, 1]


class Linear(L.LightningModule):
    """Takes rows of four."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def predict_step(self, batch: Tensor) -> Tensor:
        return self.layer(batch)


def test_error_of_the_module_says_what_it_was_called_with() -> None:
    with Predictor(Linear()) as predictor:
        with pytest.raises(RuntimeError, match="cannot be multiplied") as raised:
            predictor(np.ones((8, 3)))
        (called,) = vars(raised.value)["__notes__"]  # one line: what helps, and then what is hidden
        assert called.startswith("Linear.predict_step was called with float32 of shape (8, 3).")
        assert called.endswith("frames of libraries are hidden; ITWINAI_FULL_TRACEBACK=1 shows them]")
        with pytest.raises(TypeError) as raised:
            predictor({"x": np.ones((2, 4)), "more": [torch.arange(2), "text"]})
        assert vars(raised.value)["__notes__"][-1].startswith(
            "Linear.predict_step was called with a dict (['x']: float32 of shape (2, 4), "
            "['more'][0]: int64 of shape (2,), ['more'][1]: a value of type str)."
        )


def test_small_input_does_not_wait_for_a_large_one(queued: Queued) -> None:
    large, small = queued.ask(torch.ones(50, 2)), queued.ask(torch.ones(4, 3))
    queued.module.gate.set()
    large.result(), small.result()
    assert queued.module.batches[:4] == [5, 5, 4, 5]


def test_input_of_a_caller_that_left_is_dropped(queued: Queued) -> None:
    from itwinai.inference.batching import Request

    request = Request(torch.ones(4, 2), 4)
    queued.predictor._batching.submit(request)
    request.future.cancel()
    queued.module.gate.set()
    queued.first.result()
    queued.predictor(torch.ones(1, 2))
    assert queued.module.batches == [5, 1]


def test_batch_waits_until_it_is_full_or_the_predictor_is_closed() -> None:
    module = Doubling()
    predictor = Predictor(module, batch_size=4, max_wait=3600)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(predictor, [torch.ones(1, 2)] * 4))
        assert module.batches[0] == 4
        last = pool.submit(predictor, torch.full((1, 2), 4.0))
        wait_until(lambda: len(predictor._batching._thread().pending) == 1)
        predictor.close()
        assert torch.equal(last.result(), torch.full((1, 2), 8.0))
    with pytest.raises(PredictorError, match="closed"):
        predictor(torch.ones(1, 2))
    assert repr(predictor) == "Predictor(Doubling, device='cpu', closed)"


# ----------------------------------------------------------------------------------------------- processes, threads


def test_thread_ends_with_the_object() -> None:
    predictor = Predictor(Structured())
    assert threads() == []
    predictor({"x": torch.ones(1), "more": (torch.ones(1), torch.ones(1)), "scale": 1})
    (thread,) = threads()
    del predictor  # which nothing else refers to
    thread.join(30)
    assert not thread.is_alive()


def test_pickled_predictor() -> None:
    with Predictor(Transferred(4), batch_size=3, max_wait=0.01) as predictor:
        copied = pickle.loads(pickle.dumps(predictor))
        with copied:
            torch.testing.assert_close(copied((X,)), predictor((X,)))
        assert (copied.batch_size, copied._options) == (3, predictor._options)
    assert "closed" in repr(pickle.loads(pickle.dumps(predictor)))


ENDING = """
import os, sys, threading
import numpy as np
from itwinai import Predictor
from tests.support.predicted import Doubling

module = Doubling()
predictor = Predictor(module)
x = np.ones((300, 300), dtype="float32")  # torch divides so many among its threads, which no fork outlives
print("before", float(predictor(x).sum()), flush=True)  # what is still in the buffer would be the child's too
child = os.fork()
if child == 0:
    own = Predictor(module)
    assert (own(x) == 2 * x).all()  # two predictors in a forked process, one of which was in use before
    assert (predictor(3 * x) == 6 * x).all()
    print("child", float(predictor(x).sum()), flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
def ask():
    while True:
        predictor(x)
threading.Thread(target=ask, daemon=True).start()
print("after", float(predictor(x).sum()))
"""


def test_fork_and_the_end_of_the_interpreter(run_command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    finished = run_command(python(str(tmp_path / "ending.py")), timeout=120)
    assert finished.code == 0, finished.output
    assert [line.split()[0] for line in finished.output.splitlines() if "180000.0" in line] == [
        "before",
        "child",
        "after",
    ]


# --------------------------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_exports_take_any_number_of_rows(ending: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / f"model.{ending}"
    with Predictor.load(folder / "whole.ckpt", method="forward") as predictor:
        predictor.export(target)
        expected = predictor(X)
    if ending == "pt2":
        output = torch.export.load(target).module()(X)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(target))
        output = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])
    torch.testing.assert_close(output.detach(), expected)
    assert os.listdir(tmp_path) == [target.name]


class Random(L.LightningModule):
    """Adds noise to one of two arguments."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y + torch.rand_like(x)


class OfTwo(L.LightningModule):
    """Takes two rows."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind()
        return torch.stack([first, second])


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_export_that_differs_is_not_written(ending: str, tmp_path: Path) -> None:
    with Predictor(Random(), method="forward") as predictor:
        with pytest.raises(ExportError, match="(?s)Output 0 of .* differs from that of Random.*random numbers"):
            predictor.export(tmp_path / f"a.{ending}", (np.ones((2, 2)), np.ones((2, 2))))
        with pytest.raises(ConfigurationError, match="example"):
            predictor.export(tmp_path / f"a.{ending}")
    assert os.listdir(tmp_path) == []


def test_export_of_a_fixed_number_of_rows_says_so(tmp_path: Path) -> None:
    with Predictor(OfTwo()) as predictor, pytest.warns(UserWarning, match="a.pt2 accepts exactly 2 rows"):
        predictor.export(tmp_path / "a.pt2", torch.ones(2, 2))
