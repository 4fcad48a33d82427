"""Job preparation: bring the shared input to the node, once, before any task of the job runs there.

Copies Python's own standard library below AZ_BATCH_NODE_SHARED_DIR and deals its modules out into shards of about
the same size. Only the standard library is needed.
"""

import argparse
import json
import os
import shutil
import sys
import sysconfig
import time
from pathlib import Path

LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}


def modules(library: Path) -> list[Path]:
    """Return the library's source files, relative to it, in a stable order."""
    found = (path.relative_to(library) for path in library.rglob("*.py"))
    return sorted(path for path in found if not LEFT_OUT.intersection(path.parts) and path.parts[0] != "config")


def deal(sizes: dict[str, int], shards: int) -> list[list[str]]:
    """Spread files over shards so that all have about the same number of bytes: the largest file goes first."""
    piles: list[list[str]] = [[] for _ in range(shards)]
    weights = [0] * shards
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = weights.index(min(weights))
        piles[lightest].append(name)
        weights[lightest] += sizes[name]
    return piles


def main() -> None:
    """Copy, deal out, and only then put the finished directory in its place: a rerun begins from nothing."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--shards", type=int, default=24)
    shards = arguments.parse_args().shards
    library = Path(sysconfig.get_paths()["stdlib"])
    target = Path(os.environ["AZ_BATCH_NODE_SHARED_DIR"]) / os.environ["AZ_BATCH_JOB_ID"]
    fresh = target.with_name(f".{target.name}.new")
    for old in (fresh, target):
        shutil.rmtree(old, ignore_errors=True)
    (fresh / "results").mkdir(parents=True)
    sizes = {}
    for module in modules(library):
        copy = fresh / "source" / module
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / module, copy)
        sizes[str(module)] = copy.stat().st_size
    index = {"python": sys.version.split()[0], "prepared": time.time(), "shards": deal(sizes, shards)}
    (fresh / "index.json").write_text(json.dumps(index))
    fresh.rename(target)
    print(f"{len(sizes)} modules, {sum(sizes.values()) / 1e6:.1f} MB, in {shards} shards below {target}")


if __name__ == "__main__":
    main()
