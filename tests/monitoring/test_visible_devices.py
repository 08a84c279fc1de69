"""The GPUs of a run are those that its workers' environments name, in any of the ways in which they can."""

from __future__ import annotations

import pytest

from itwinai.monitoring.visible_devices import visible_to_cuda, visible_to_hip

IDS = ["GPU-aa10", "GPU-aa20", "GPU-bb30", "GPU-cc40"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        (" ", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("GPU-bb30", [2]),
        ("GPU-b", [2]),
        ("GPU-cc4,1", [3, 1]),
        ("-1", []),
        ("1,-1,2", [1]),
    ],
)
def test_numbers_ids_and_beginnings_of_ids(text: str | None, numbers: list[int]) -> None:
    visible = visible_to_cuda([{} if text is None else {"CUDA_VISIBLE_DEVICES": text}], IDS)
    assert (visible.ids, visible.missing) == ([IDS[number] for number in numbers], {})


@pytest.mark.parametrize("entry", ["7", "GPU-aa", "GPU-zz", "NoDevFiles", "1.5"])
def test_entry_that_is_not_valid_ends_the_list_as_for_cuda_and_is_named(entry: str) -> None:
    visible = visible_to_cuda([{"CUDA_VISIBLE_DEVICES": f"3,{entry},1"}], IDS)
    assert visible.ids == ["GPU-cc40"]
    assert f"CUDA_VISIBLE_DEVICES=3,{entry},1 names it" in visible.missing[f"GPU {entry!r}"]


def test_instances() -> None:
    text = "MIG-1234-5678,MIG-GPU-aa10/1/0"
    assert visible_to_cuda([{"CUDA_VISIBLE_DEVICES": text}], IDS).ids == text.split(",")


def test_workers_that_see_one_gpu_each() -> None:
    environments = [{"CUDA_VISIBLE_DEVICES": number} for number in ("2", "0", "2")]
    assert visible_to_cuda(environments, IDS).ids == ["GPU-bb30", "GPU-aa10"]


def test_hip_numbers_what_rocr_leaves() -> None:
    assert visible_to_hip([{"ROCR_VISIBLE_DEVICES": "3,2,0", "HIP_VISIBLE_DEVICES": "1"}], IDS).ids == ["GPU-bb30"]
    assert visible_to_hip([{"ROCR_VISIBLE_DEVICES": "GPU-bb30,0"}], IDS).ids == ["GPU-bb30", "GPU-aa10"]
    assert visible_to_hip([{"CUDA_VISIBLE_DEVICES": "1"}], IDS).ids == ["GPU-aa20"]
    assert visible_to_hip([{"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}], IDS).ids == ["GPU-aa10"]
    assert visible_to_hip([{"HIP_VISIBLE_DEVICES": ""}], IDS).ids == []
