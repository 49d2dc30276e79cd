"""`python -m pipeline.report RUN`."""
# ruff: noqa: T201 (a command line prints)

import argparse
import sys
from collections.abc import Sequence

from data_prep import storage
from pipeline import report, tracking
from pipeline.exits import fail
from pipeline.record import read_record


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report",
        description=report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="path or URL of a run's folder")
    args = parser.parse_args(argv)
    try:
        artifacts = report.make(args.run)
        url = storage.join(args.run, report.NAME)
        print(f"{url}: {len(artifacts[report.NAME]) / 1e6:.1f} MB, {len(artifacts) - 1} pictures")
        record = read_record(args.run)
        if "tracking_run_id" in record:
            uri, run_id = record["tracking_uri"], record["tracking_run_id"]
            tracking.log_artifacts(uri, run_id, args.run, artifacts)
    except (ValueError, OSError) as err:
        return fail(1, err)
    return 0


if __name__ == "__main__":
    sys.exit(main())
