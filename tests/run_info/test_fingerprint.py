"""What was started with other values is told by name, and no secret is written."""

from __future__ import annotations

from pathlib import Path

from itwinai.run_info.fingerprint import Fingerprint


def test_changes_are_told_by_path(tmp_path: Path) -> None:
    config = {"trainer": {"max_epochs": 4, "callbacks": []}, "model": {"lr": 0.1}}
    path = tmp_path / "asked.json"
    assert Fingerprint.of(config).changes(path) == {}  # there is nothing to compare with
    Fingerprint.of(config).write(path)
    assert Fingerprint.of(config).changes(path) == {}
    other = {"trainer": {"max_epochs": 9, "callbacks": []}, "model": {}}
    assert Fingerprint.of(other).changes(path) == {
        "trainer.max_epochs": ("4", "9"),
        "model.lr": ("0.1", None),
        "model": (None, "{}"),
    }


def test_secrets_are_left_out(tmp_path: Path) -> None:
    Fingerprint.of({"logger": {"api_key": "abc123xyz"}}).write(tmp_path / "f")
    assert "abc123xyz" not in (tmp_path / "f").read_text() and "api_key" in (tmp_path / "f").read_text()
