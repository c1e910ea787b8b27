"""Portraits rendered per second at 64 px and written as Parquet, with all cores.

python benchmarks/bench_portraits.py
"""

import os
import sys
import tempfile
import time

from record import record

from mmgen.data.portrait_sets import write_parquet
from mmgen.data.portraits import seeds


def main(n: int = 12_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_parquet(f"{folder}/a.parquet", seeds(n))
        took = time.perf_counter() - start
    record(
        "speed",
        {
            "what": "portraits of 64 px",
            "n": n,
            "seconds": round(took, 1),
            "cores": os.cpu_count(),
            "images per second": round(n / took),
        },
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
