"""What a benchmark leaves for people to read: a page with pictures, and the pictures as files."""

from __future__ import annotations

from itwinai.benchmark.report.write import write_report

__all__ = ["write_report"]
