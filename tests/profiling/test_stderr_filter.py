"""Some lines of the standard error are left out, and no others."""

from __future__ import annotations

import os

import pytest

from itwinai.profiling.stderr_filter import without_lines


def test_all_lines_but_those_come_and_in_their_order(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(2, b"before\n")
    with without_lines(b"USDT:", b"ERROR: External"):
        os.write(2, b"USDT: one\nERROR: External init\nfirst USDT:\n")
        os.write(2, b"USDT: two\nlast, without an end")
    os.write(2, b"\nUSDT: after\n")
    captured = capfd.readouterr()
    assert captured.err.splitlines() == ["before", "first USDT:", "last, without an end", "USDT: after"]


def test_an_error_gets_out_and_what_was_printed_before_it_too(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArithmeticError), without_lines(b"USDT:"):
        os.write(2, b"USDT: one\nwhy\n")
        raise ArithmeticError
    os.write(2, b"after\n")
    assert capfd.readouterr().err.splitlines() == ["why", "after"]


def test_a_process_without_standard_error_continues() -> None:
    kept = os.dup(2)
    os.close(2)
    try:
        with without_lines(b"USDT:"):
            reached = True
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert reached
