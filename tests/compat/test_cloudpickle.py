"""What `itwinai.compat.cloudpickle` takes for granted about private names."""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any

import cloudpickle
from lightning.pytorch import LightningModule

from itwinai.compat import cloudpickle as compat_cloudpickle


def receive(pipe: Any) -> None:
    """Run in another process: unpickle a class, and say under which id it is known there."""
    received = pickle.loads(pipe.recv_bytes())
    class_id = compat_cloudpickle.dynamic_class_id(received)
    pipe.send((received.__name__, class_id, compat_cloudpickle.dynamic_class(class_id) is received))


def test_class_sent_by_value_has_the_same_id_on_both_sides() -> None:
    # Forked before there is the class, and because another Python would take seconds to import lightning.
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=receive, args=(theirs,))
    process.start()
    theirs.close()

    class Local:
        pass

    ours.send_bytes(cloudpickle.dumps(Local))
    class_id = compat_cloudpickle.dynamic_class_id(Local)
    assert class_id is not None
    assert compat_cloudpickle.dynamic_class(class_id) is Local
    assert ours.recv() == ("Local", class_id, True)
    process.join()


def test_importable_class_has_no_id() -> None:
    cloudpickle.dumps(LightningModule)
    assert compat_cloudpickle.dynamic_class_id(LightningModule) is None


def test_classes_that_are_sent_by_value_come_back_as_the_same() -> None:
    class Local:
        pass

    assert compat_cloudpickle.dynamic_class_id(Local) is None
    compat_cloudpickle.register_dynamic_classes([Local])
    number = compat_cloudpickle.dynamic_class_id(Local)
    assert number is not None and compat_cloudpickle.dynamic_class(number) is Local
    assert pickle.loads(cloudpickle.dumps(Local)) is Local
