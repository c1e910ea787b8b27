"""Makes a season whose rows depend on a secret, or checks the secret of a season that is to be opened.

    python benchmarks/seal_season.py 2027.1 --secret FILE      # draws the secret into a new FILE, prints the entry
    python benchmarks/seal_season.py 2027.1 --open SECRET      # checks the secret and all pixels against the entry

Entries are those of `SEASONS` in nbs/benchmark/seasons.ipynb. Keep FILE outside the repository.
"""

import argparse
import secrets
from datetime import datetime, timezone
from pathlib import Path

from mmgen.base.files import repo_root
from mmgen.benchmark.seasons import SEASONS, BenchError, opened, sealed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--secret", type=Path, help="a new file for the secret")
    action.add_argument("--open", help="the secret")
    a = parser.parse_args()
    try:
        if a.open:
            if a.name not in SEASONS:
                raise BenchError(f"There is no season {a.name!r}; there are {', '.join(SEASONS)}.")
            season = opened(a.name, SEASONS[a.name], a.open)
        else:
            file = a.secret.expanduser().resolve()
            if a.name in SEASONS or file.is_relative_to(repo_root()):
                raise BenchError("Choose a new name, and a file outside the repository.")
            secret = secrets.token_hex(32)
            with file.open("x") as out:
                file.chmod(0o600)
                out.write(secret + "\n")
            season = sealed(a.name, secret, f"{datetime.now(timezone.utc):%Y-%m-%d}")
    except (BenchError, OSError) as error:
        parser.error(str(error))
    print(f'    "{a.name}": {season!r},')


if __name__ == "__main__":
    main()
