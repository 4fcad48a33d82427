"""One task: read one shard of the standard library and write down what is in it.

Usage: analyse.py SHARD [--fail-once]. The result goes to `results/<shard>.json` in the job's shared directory, whole
or not at all. Only the standard library is needed.
"""

import argparse
import ast
import io
import json
import os
import sys
import time
import tokenize
from pathlib import Path
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef

BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.With, ast.AsyncWith, ast.IfExp, ast.BoolOp)


def module_name(path: str) -> str:
    """Return `json.decoder` for `json/decoder.py`, `json` for `json/__init__.py`."""
    parts = path[: -len(".py")].split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def line_kinds(text: str) -> dict[str, int]:
    """Count the lines of a file: code, comment, blank."""
    comments: set[int] = set()
    code: set[int] = set()
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in skipped:
            code.update(range(token.start[0], token.end[0] + 1))
    total = text.count("\n") + (not text.endswith("\n"))
    return {"total": total, "code": len(code), "comment": len(comments - code), "blank": total - len(code | comments)}


def complexity(function: Function) -> int:
    """Return how many ways lead through a function: 1 and one for each branch (McCabe, roughly)."""
    return 1 + sum(isinstance(node, BRANCHES) for node in ast.walk(function))


def imports(tree: ast.AST) -> list[str]:
    """Return the top-level names that a module imports from elsewhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return sorted(names)


def analyse(path: str, text: str) -> dict[str, Any]:
    """Return what there is to say of one module."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    public = [node for node in (*functions, *classes) if not node.name.startswith("_")]
    return {
        "module": module_name(path),
        "lines": line_kinds(text),
        "classes": len(classes),
        "public": len(public),
        "documented": sum(ast.get_docstring(node, clean=False) is not None for node in public),
        "imports": imports(tree),
        "functions": [
            {"name": node.name, "lines": (node.end_lineno or node.lineno) - node.lineno + 1, "paths": complexity(node)}
            for node in functions
        ],
    }


def fail_once(job: Path, shard: int) -> None:
    """End with status 3 the first time: so that the run has a retry to show."""
    marker = job / f"failed-once-{shard:02d}.json"
    if marker.exists():
        return
    marker.write_text(json.dumps({"shard": shard, "time": time.time()}))
    print(f"shard {shard}: failing on purpose, this once; the retry will find {marker.name}", file=sys.stderr)
    sys.exit(3)


def main() -> None:
    """Analyse one shard."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("shard", type=int)
    arguments.add_argument("--fail-once", action="store_true")
    given = arguments.parse_args()
    started = time.time()
    job = Path(os.environ["AZ_BATCH_NODE_SHARED_DIR"]) / os.environ["AZ_BATCH_JOB_ID"]
    index = json.loads((job / "index.json").read_text())
    if given.fail_once:
        fail_once(job, given.shard)
    found = []
    for path in index["shards"][given.shard]:
        with tokenize.open(job / "source" / path) as source:
            found.append(analyse(path, source.read()))
    result = {
        "shard": given.shard,
        "task": os.environ["AZ_BATCH_TASK_ID"],
        "node": os.environ["AZ_BATCH_NODE_ID"],
        "started": started,
        "ended": time.time(),
        "modules": found,
    }
    target = job / "results" / f"{given.shard:02d}.json"
    fresh = target.with_suffix(".new")
    fresh.write_text(json.dumps(result))
    fresh.rename(target)
    lines = sum(module["lines"]["code"] for module in found)
    print(f"shard {given.shard}: {len(found)} modules, {lines} lines of code, {time.time() - started:.2f} s")


if __name__ == "__main__":
    main()
