"""The site is built without a warning, so every link within it leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import REPOSITORY, RunCommand, python


def test_site_is_built_without_a_warning(run_command: RunCommand, tmp_path: Path) -> None:
    build = ["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    built = run_command(python(*build, str(REPOSITORY / "docs"), str(tmp_path / "html")), fresh=True)
    assert (built.code, built.output.strip()) == (0, "")
    tutorial = (tmp_path / "html/tutorials/your-first-model.html").read_text()
    assert "global batch 64 = 2 workers x 32" in tutorial  # what a cell printed
    assert re.search(r'<img [^>]*src="\.\./_images/\w+\.png"', tutorial)  # what a cell drew
    commands = (tmp_path / "html/reference/command-line.html").read_text()
    assert "--trainer.max_restarts" in commands
    trainer = (tmp_path / "html/reference/api/trainer.html").read_text()
    assert 'id="itwinai.ItwinaiTrainer"' in trainer
