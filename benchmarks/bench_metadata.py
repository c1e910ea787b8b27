"""A dump's metadata to the table of posts, beside what DuckDB needs to read and count the same JSON; and the choice of posts.

    python benchmarks/bench_metadata.py [--posts 100000,1000000,3300000] [--form 2017] [--blocks 1] [--folder dumps]

Each size is a synthetic dump (28 tags a post; 3.3 million posts are 7.4 GB). `count` is DuckDB's read_json with the same columns declared, on all cores: rows and
tags are counted, nothing is written; columns that no count needs are not even converted. `every column` counts the values of each, so that all are. Both run before and
after `write_posts`, and the ratio is to the mean of the two; of several blocks, the median is told and every ratio beside it. All files are read once before, so that
no step waits for the disk. Each step runs in a process of its own, whose
memory, children included, is looked at twenty times a second. `select` is the whole choice: filters, 300 000 posts, vocabulary.
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

COUNT = """
import duckdb, json, sys, time
from mmgen.data.danbooru_files import find_metadata
from mmgen.data.danbooru_table import _DUCKDB, raw_schema
form, files = sys.argv[2], [str(f) for f in find_metadata(sys.argv[1])]
fields = ", ".join(f"{name}: '{_DUCKDB[kind]}'" for name, kind in raw_schema(form, typed=True).items())
tags = "sum(len(tags))" if form == "2017" else "sum(len(string_split(tag_string_general, ' ')))"
every = ", ".join(f"count({name})" for name in raw_schema(form, typed=True)) + (", max(tags[1].name), max(tags[-1].category)" if form == "2017" else "")
table, seconds = f"read_json({files}, format='newline_delimited', columns={{{fields}}}, maximum_object_size=4194304)", []
for what in (f"count(*), {tags}", f"count(*), {tags}, {every}"):
    start = time.perf_counter()
    found = duckdb.sql(f"SELECT {what} FROM {table}").fetchall()[0]
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds[0], "every column": seconds[1], "posts": found[0]}))
"""
WRITE = """
import json, sys, time
from mmgen.data.danbooru import write_posts
start = time.perf_counter()
counts = write_posts(sys.argv[1], sys.argv[3], sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - start, "posts": counts["posts"], "tags": counts["tags"]}))
"""
SELECT = """
import json, sys, time
from mmgen.data.subset import select
start = time.perf_counter()
counts = select(sys.argv[3] + "/posts", sys.argv[3], 300_000, min_tag_count=100)
print(json.dumps({"seconds": time.perf_counter() - start, "posts": counts["posts"], "chosen": counts["chosen"]}))
"""


def measured(code, *arguments):
    "What a process prints, with its peak memory."
    process, peak = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True), 0
    while process.poll() is None:
        try: peak = max(peak, sum(p.memory_info().rss for p in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]))
        except psutil.Error: pass
        time.sleep(0.05)
    assert process.returncode == 0
    return json.loads(process.stdout.read().splitlines()[-1]) | {"peak GiB": round(peak / 2**30, 2)}


def main():
    from record import record

    from mmgen.data.synthetic_dump import write_dump
    p = argparse.ArgumentParser()
    p.add_argument("--posts", default="100000,1000000,3300000")
    p.add_argument("--form", default="2017")
    p.add_argument("--blocks", type=int, default=1, help="how often all is measured")
    p.add_argument("--folder", default=None, help="where the dumps are written and kept; default: a temporary folder")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for posts in map(int, args.posts.split(",")):
            dump = Path(args.folder or temporary) / f"{args.form}-{posts}"
            if not dump.is_dir(): write_dump(dump, posts, args.form, images=False)
            for file in (dump / "metadata").iterdir():
                with open(file, "rb") as read:
                    while read.read(1 << 24): pass
            out, counts, ours = Path(temporary) / f"out-{posts}", [measured(COUNT, str(dump), args.form)], []
            for _ in range(args.blocks):
                shutil.rmtree(out, ignore_errors=True)
                ours.append(measured(WRITE, str(dump), args.form, str(out)))
                counts.append(measured(COUNT, str(dump), args.form))
            assert {run["posts"] for run in counts + ours} == {posts}
            chosen = measured(SELECT, str(dump), args.form, str(out))
            seconds, count = [run["seconds"] for run in ours], [run["seconds"] for run in counts]

            def ratios(name): return [run["seconds"] / ((before[name] + after[name]) / 2) for run, before, after in zip(ours, counts, counts[1:])]
            record("speed", {"what": "metadata of a dump to Parquet", "form": args.form, "posts": posts, "tags": ours[0]["tags"], "JSON GB": round(sum(f.stat().st_size for f in (dump / "metadata").iterdir()) / 1e9, 2),
                             "Parquet GB": round(sum(f.stat().st_size for f in (out / "posts").iterdir()) / 1e9, 2), "blocks": args.blocks, "count, s": round(median(count), 1), "every count, s": [round(s, 1) for s in count],
                             "every column, s": round(median(run["every column"] for run in counts), 1), "write_posts, s": round(median(seconds), 1), "every write_posts, s": [round(s, 1) for s in seconds],
                             "ratio to count": round(median(ratios("seconds")), 2), "ratio in each block": [round(r, 2) for r in ratios("seconds")], "ratio to every column": round(median(ratios("every column")), 2),
                             "microseconds per post": round(1e6 * median(seconds) / posts, 1), "peak GiB": max(run["peak GiB"] for run in ours), "select, s": round(chosen["seconds"], 1), "select, peak GiB": chosen["peak GiB"], "chosen": chosen["chosen"]})
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
