"""`dure report RUN…`: one page about a run, several that followed one another, or rivals side by side."""

from __future__ import annotations

import argparse
from pathlib import Path


def report(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is; --output, or report.html in the first RUN."""
    from launch.report import REPORT_NAME, write_report
    from launch.report_data import find_run

    runs = [find_run(name) for name in arguments.paths]
    output = Path(arguments.output) if arguments.output else runs[0] / REPORT_NAME
    write_report(runs, output, extra={})
    print(f"{output}: {output.stat().st_size:,} bytes; open it in a browser (브라우저로 여십시오)")
    return 0
