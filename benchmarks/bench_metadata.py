"""Time to convert a dump's metadata to the table of posts and to select posts, against DuckDB reading the same JSON.

    python benchmarks/bench_metadata.py [--posts 100000,1000000,3300000] [--form 2017] [--blocks 1] [--folder dumps]

Each size is a synthetic dump (28 tags a post; 3.3 million posts are 7.4 GB). What DuckDB needs to count, on all cores
and without writing, is measured three ways. `rows`: SELECT count(*) FROM read_json(files), as typed by hand; DuckDB
infers the columns. `rows and tags`: the columns of the table are declared, and those that no count needs are not
converted. `every column`: the same, but the values of each are counted, so that all that the table needs is read.
They run before and after `write_posts`, and the ratio is to the mean of the two; of several blocks, the median is
reported beside every ratio. All files are read once before, so that no step waits for the disk. Each step runs in a
process of its own, whose peak memory the system reports. `select` is the whole choice: filters, 300 000 posts,
vocabulary.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

COUNT = """
import duckdb, json, sys, time
from mmgen.danbooru.metadata_files import find_metadata
from mmgen.danbooru.metadata_table import _DUCKDB, raw_schema
form, files = sys.argv[2], [str(f) for f in find_metadata(sys.argv[1])]
fields = ", ".join(f"{name}: '{_DUCKDB[kind]}'" for name, kind in raw_schema(form, typed=True).items())
tags = "sum(len(tags))" if form == "2017" else "sum(len(string_split(tag_string_general, ' ')))"
every = ", ".join(f"count({name})" for name in raw_schema(form, typed=True))
if form == "2017":
    every += ", max(tags[1].name), max(tags[-1].category)"
table = f"read_json({files}, format='newline_delimited', columns={{{fields}}}, maximum_object_size=4194304)"
queries = {
    "rows": f"SELECT count(*) FROM read_json({files})",
    "rows and tags": f"SELECT count(*), {tags} FROM {table}",
    "every column": f"SELECT count(*), {tags}, {every} FROM {table}",
}
seconds = {}
for name, query in queries.items():
    start = time.perf_counter()
    found = duckdb.sql(query).fetchall()[0]
    seconds[name] = time.perf_counter() - start
print(json.dumps(seconds | {"posts": found[0]}))
"""
WRITE = """
import json, sys, time
from mmgen.danbooru.posts import write_posts
start = time.perf_counter()
counts = write_posts(sys.argv[1], sys.argv[3], sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - start, "posts": counts["posts"], "tags": counts["tags"]}))
"""
SELECT = """
import json, sys, time
from mmgen.danbooru.subset import select
start = time.perf_counter()
counts = select(sys.argv[3] + "/posts", sys.argv[3], 300_000, min_tag_count=100)
print(json.dumps({"seconds": time.perf_counter() - start, "posts": counts["posts"], "chosen": counts["chosen"]}))
"""


def measured(code, *arguments):
    "What a process prints, with its peak memory and the processor seconds that it took."
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    return json.loads(printed.splitlines()[-1]) | {
        "peak GiB": round(used.ru_maxrss / 2**20, 2),
        "processor seconds": used.ru_utime + used.ru_stime,
    }


def main():
    from record import record

    from mmgen.danbooru.synthetic_dump import write_dump

    p = argparse.ArgumentParser()
    p.add_argument("--posts", default="100000,1000000,3300000")
    p.add_argument("--form", default="2017")
    p.add_argument("--blocks", type=int, default=1, help="how often all is measured")
    p.add_argument("--folder", default=None, help="where the dumps are written and kept; default: a temporary folder")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for posts in map(int, args.posts.split(",")):
            dump = Path(args.folder or temporary) / f"{args.form}-{posts}"
            if not dump.is_dir():
                write_dump(dump, posts, args.form, images=False)
            for file in (dump / "metadata").iterdir():
                with open(file, "rb") as read:
                    while read.read(1 << 24):
                        pass
            out, counts, ours = Path(temporary) / f"out-{posts}", [measured(COUNT, str(dump), args.form)], []
            for _ in range(args.blocks):
                shutil.rmtree(out, ignore_errors=True)
                ours.append(measured(WRITE, str(dump), args.form, str(out)))
                counts.append(measured(COUNT, str(dump), args.form))
            assert {run["posts"] for run in counts + ours} == {posts}
            chosen = measured(SELECT, str(dump), args.form, str(out))
            row = {
                "what": "metadata of a dump to Parquet",
                "form": args.form,
                "posts": posts,
                "tags": ours[0]["tags"],
                "JSON GB": round(sum(f.stat().st_size for f in (dump / "metadata").iterdir()) / 1e9, 2),
                "Parquet GB": round(sum(f.stat().st_size for f in (out / "posts").iterdir()) / 1e9, 2),
                "blocks": args.blocks,
                "write_posts, s": round(median(run["seconds"] for run in ours), 1),
                "every write_posts, s": [round(run["seconds"], 1) for run in ours],
                "processor seconds": round(median(run["processor seconds"] for run in ours), 1),
            }
            for name in ("rows", "rows and tags", "every column"):
                ratios = [
                    run["seconds"] / ((before[name] + after[name]) / 2)
                    for run, before, after in zip(ours, counts, counts[1:])
                ]
                row |= {
                    f"count of {name}, s": round(median(run[name] for run in counts), 1),
                    f"every count of {name}, s": [round(run[name], 1) for run in counts],
                    f"ratio to count of {name}": round(median(ratios), 2),
                    f"ratio to count of {name} in each block": [round(r, 2) for r in ratios],
                }
            record(
                "speed",
                row
                | {
                    "microseconds per post": round(1e6 * median(run["seconds"] for run in ours) / posts, 1),
                    "peak GiB": max(run["peak GiB"] for run in ours),
                    "select, s": round(chosen["seconds"], 1),
                    "select, peak GiB": chosen["peak GiB"],
                    "chosen": chosen["chosen"],
                },
            )
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
