"""The Snakefile has a rule for each step, with what the step reads."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from itwinai.cli.main import main
from tests.pipelines.project import Project


def test_each_step_is_a_rule(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.folder / "p.yaml").write_text(json.dumps(project.pipeline))
    assert main(["run", "p.yaml", "--export", "snakemake", "--steps.split.share", "3"]) == 0
    text = capsys.readouterr().out
    compile(
        re.sub(r"^(\s*)(rule )?(\w+):$", r"\1if True:", text, flags=re.MULTILINE).replace("config=", ""), "f", "exec"
    )
    rules = {rule.split(":")[0]: rule for rule in text.split("\nrule ")[1:]}
    assert list(rules) == ["all", "split", "count", "score", "report"]
    assert "runs/p/report/step.json" in rules["all"] and "count" not in rules["all"]

    def inputs(name: str) -> set[str]:
        return set(re.findall(r"'(.*)',", rules[name].partition("output:")[0]))

    code = {"project/__init__.py", "project/steps.py"}
    assert inputs("split") == {"raw.txt", "project/helpers.py", *code}
    assert inputs("score") == {"runs/p/split/step.json", *code}
    assert inputs("report") == {"runs/p/count/step.json", "runs/p/score/step.json", "notes.txt", *code}
    command = re.search(r"shell:\n\s+'(.*)'", rules["split"])
    assert command is not None and shlex.split(command[1]) == [
        *("itwinai", "run", "p.yaml", "split", "--folder", "runs/p", "--jobs", "1", "--steps.split.share=3")
    ]
    assert not (project.folder / "runs").exists()
    # Another value is another parameter, by which Snakemake runs the rule again.
    assert main(["run", "p.yaml", "--export", "snakemake"]) == 0
    other = capsys.readouterr().out.split("\nrule ")
    assert other[2].partition("config=")[2][:30] != rules["split"].partition("config=")[2][:30]
    assert other[3].partition("config=")[2][:30] == rules["count"].partition("config=")[2][:30]
