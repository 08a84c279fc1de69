"""Completion, asked of the shells themselves: bash and zsh at a terminal, fish by its own command."""

from __future__ import annotations

import os
import pty
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from itwinai.cli.completion import SHELLS, install_path
from itwinai.cli.main import COMMANDS, main
from tests.conftest import require_programs

# What is typed, and what it becomes with the key TAB, where nothing else can be meant.
COMPLETED = {
    "itwinai fi": "itwinai fit",
    "itwinai fit --trainer.max_ep": "itwinai fit --trainer.max_epochs",
    "itwinai fit --strat": "itwinai fit --strategy",
    "itwinai fit --strategy horo": "itwinai fit --strategy horovod",
    "itwinai fit --strategy=horo": "itwinai fit --strategy=horovod",
    "itwinai predict --split v": "itwinai predict --split val",
    "itwinai fit --logger csv,mlf": "itwinai fit --logger csv,mlflow",
    "itwinai benchmark --strategies ddp,horo": "itwinai benchmark --strategies ddp,horovod",
    "itwinai fit -c con": "itwinai fit -c config.yaml",
    "itwinai test --ckpt au": "itwinai test --ckpt auto",
    "itwinai check --checks same_w": "itwinai check --checks same_weights",
    "itwinai slurm sta": "itwinai slurm status",
    "itwinai slurm tune --part": "itwinai slurm tune --partition",
    "itwinai checkpoint veri": "itwinai checkpoint verify",
    "itwinai config --explain trainer.max_ep": "itwinai config --explain trainer.max_epochs",
    "itwinai init time": "itwinai init timeseries",
    "itwinai completion zs": "itwinai completion zsh",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the scripts of all shells in a home of its own, beside a folder with two files."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.delenv("XDG_DATA_HOME", raising=False)
        patch.delenv("XDG_CONFIG_HOME", raising=False)
        for shell in SHELLS:
            assert main(["completion", shell, "--install"]) == 0
            assert install_path(shell).is_relative_to(home)
    work = home / "work"
    work.mkdir()
    (work / "config.yaml").touch()
    (work / "consumed.txt").touch()
    return home


Type = Callable[[str], str]


@pytest.fixture(scope="module", params=["bash", "zsh"])
def terminal(request: pytest.FixtureRequest, scripts: Path) -> Iterator[Type]:
    """Start a shell at a terminal, and return what makes it complete what is typed."""
    require_programs([] if shutil.which(request.param) else [request.param], f"apt-get install {request.param}")
    setup = {
        "bash": "bind 'set enable-bracketed-paste off'; source ~/.local/share/bash-completion/completions/itwinai",
        "zsh": "unset zle_bracketed_paste; fpath=(~/.zfunc $fpath); autoload -Uz compinit && compinit -u -D",
    }[request.param]
    command = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[request.param]
    process, descriptor = pty.fork()
    if process == 0:
        variables = {"HOME": str(scripts), "TERM": "dumb", "PATH": os.environ["PATH"], "COLUMNS": "200"}
        os.chdir(scripts / "work")
        os.execvpe(command[0], command, variables)

    def until_prompt() -> str:
        seen, deadline = b"", time.monotonic() + 60
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not seen.endswith(b"@@> "):
                assert selector.select(deadline - time.monotonic()), seen
                seen += os.read(descriptor, 1 << 16)
        return seen.decode()

    def complete(typed: str) -> str:
        os.write(descriptor, f"{typed}\t\r".encode())
        shown = until_prompt()
        found = re.search(r"<(itwinai[^>]*)>", shown)
        assert found, shown
        return found[1].rstrip("=, ")

    # The command that is completed is run, and says what it was.
    os.write(descriptor, f"{setup}; itwinai() {{ echo \"<\"\"itwinai $*>\"; }}; PS1='@''@> '\r".encode())
    until_prompt()
    yield complete
    os.close(descriptor)
    os.waitpid(process, 0)


def test_terminals_complete(terminal: Type) -> None:
    assert {typed: terminal(typed) for typed in COMPLETED} == COMPLETED


def test_fish_completes(scripts: Path) -> None:
    require_programs([] if shutil.which("fish") else ["fish"], "apt-get install fish")
    lines = [*COMPLETED, "itwinai ", "itwinai fit --trainer.precision bf", "itwinai checkpoint verify co"]
    code = "".join(f'complete -C "{line}" | string replace -r \\t.\\* ""; echo ---\n' for line in lines)
    environment = {"HOME": str(scripts), "PATH": os.environ["PATH"], "TERM": "dumb"}
    asked = ["fish", "--no-config", "-c", f"source ~/.config/fish/completions/itwinai.fish\n{code}"]
    answers = subprocess.run(
        asked, cwd=scripts / "work", env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    offered = [part.split() for part in answers.stdout.split("---\n")]
    for (typed, whole), words in zip(COMPLETED.items(), offered, strict=False):
        assert whole.rpartition(" ")[2] == words[0], (typed, words)
    assert {"init", "fit", "predict", "tune", "doctor"} <= set(offered[len(COMPLETED)])
    assert set(offered[len(COMPLETED) + 1]) == {"bf16", "bf16-mixed", "bf16-true"}
    assert set(offered[len(COMPLETED) + 2]) == {"config.yaml", "consumed.txt"}


def test_scripts_have_every_command_and_flag(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(scripts))
    for shell in SHELLS:
        text = install_path(shell).read_text()
        words = set(re.findall(r"[\w.-]+", text))
        wanted = {*COMMANDS, "trainer.weigh_uneven_batches", "retrain-best", "gpus-per-node", "expect-failure"}
        missing = {one for one in wanted if not {one, f"--{one}"} & words}
        assert not missing, (shell, missing)


def test_a_shell_is_named_or_known(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    with pytest.raises(SystemExit):
        main(["completion"])
    assert "name the shell: itwinai completion bash|zsh|fish" in capsys.readouterr().err
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/none")
    assert main(["completion", "--install"]) == 1
    assert "/proc/none/fish/completions/itwinai.fish cannot be written" in capsys.readouterr().err
