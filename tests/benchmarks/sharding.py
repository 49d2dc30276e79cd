"""Images a second that become a data set, beside other libraries.

    python -m tests.benchmarks.sharding                          # about 5 minutes
    python -m tests.benchmarks.sharding --images 200 --repeats 1

Each way (`tests.benchmarks.sharding_ways`) runs in a process of its own, one after another, in turn
for each repeat; medians are printed, with the lowest and the highest. Beginning and ending the
processes is part of it. What it needs it makes in a cache folder outside the repository.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.benchmarks.machine import CORES, Figures, describe, spread
from tests.benchmarks.peers import FOLDER, run
from tests.benchmarks.photographs import make_photographs
from tests.benchmarks.sharding_ways import SIDE, WAYS

SIZE = (640, 480)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    source = make_photographs(FOLDER / f"sharding-{args.images}", args.images, SIZE, "jpg")
    print(describe("pillow", "numpy", "webdataset"))
    print(f"{args.images} JPEGs of {SIZE[0]}x{SIZE[1]} to PNGs of {SIDE} px.\n")
    processes = sorted({1, CORES})
    figures: dict[str, Figures] = {way: defaultdict(list) for way in args.ways}
    for _ in range(args.repeats):
        for way in args.ways:
            for count in processes:
                with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
                    line = run(way, "sharding_ways", way, source, Path(scratch, "set"), count)
                wall, cpu = json.loads(line)
                figures[way][f"wall {count}"].append(wall)
                figures[way][f"cpu {count}"].append(cpu)
    heads = [f"{count} process{'es' * (count > 1)}" for count in processes]
    print(f"| way | {' | '.join(heads)} | per CPU second |")
    print(f"|{'---|' * (len(heads) + 2)}")
    for way in args.ways:
        rates = [spread(figures[way][f"wall {count}"], "{:,.1f}") for count in processes]
        rates.append(spread(figures[way]["cpu 1"], "{:,.1f}"))
        print(f"| {way} | {' | '.join(rates)} |")


if __name__ == "__main__":
    main()
