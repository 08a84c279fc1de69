"""A run starts soon: what it does not need at its start is not imported, and SciPy is there for who uses it."""

from __future__ import annotations

from tests.conftest import RunCommand, python


def test_what_a_start_imports(run_command: RunCommand) -> None:
    check = (
        "import gc, sys, threading\n"
        "import tempfile\n"
        "from itwinai.tune import search_journal, search_runner, tuner\n"
        "search_journal.SearchJournal(tempfile.mkdtemp())\n"
        "heavy = {'torch', 'lightning', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"  # the search's trials import these, and its config is parsed by them
        "finders = sys.meta_path[:]\n"
        "from itwinai import ItwinaiTrainer\n"
        "assert 'torchmetrics' in sys.modules\n"
        "heavy = {'scipy.stats', 'scipy.optimize', 'mlflow', 'deepspeed', 'torch._inductor.compile_fx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert gc.isenabled() and sys.meta_path == finders and gc.get_freeze_count() == 0\n"
        # What is there already costs nothing: a worker would count all that it has frozen, at each look at the class.
        "import itwinai, itwinai.quick_imports\n"
        "count, gc.get_freeze_count = gc.get_freeze_count, None\n"
        "assert itwinai.ItwinaiTrainer is vars(itwinai)['ItwinaiTrainer'] is ItwinaiTrainer\n"
        "with itwinai.quick_imports.importing_quickly(): import torch\n"
        "gc.get_freeze_count = count\n"
        # Whoever uses it gets all of it, as if it had been imported when torchmetrics did so.
        "import scipy.signal\n"
        "assert scipy.signal.hamming(3).round(2).tolist() == [0.08, 1.0, 0.08]\n"
        "found = []\n"
        "look = lambda: found.append(scipy.signal.butter)\n"
        "threads = [threading.Thread(target=look) for _ in range(4)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "assert found == [scipy.signal.butter] * 4, found\n"
        "assert scipy.signal.hamming is scipy.signal.windows.hamming\n"
        "assert type(scipy.signal) is type(sys), type(scipy.signal)\n"
        "assert not hasattr(scipy.signal, 'nothing') and 'butter' in dir(scipy.signal)\n"
    )
    ended = run_command(python("-c", check))
    assert ended.code == 0, ended.output
