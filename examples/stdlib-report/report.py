"""Job release: gather what the tasks found on this node into one page, `report.html` in the job's shared directory.

Only the standard library is needed; the page is one file and loads nothing.
"""

import json
import os
import statistics
import string
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import charts

Module = dict[str, Any]

WHEEL = 44
BINS = ((1, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, 10**9))


def package(module: Module) -> str:
    """Return the top-level package or module that a module belongs to."""
    return str(module["module"]).split(".")[0]


def documented_share(modules: list[Module]) -> float:
    """Return the part of the public functions and classes that has a docstring; 0 where there are none."""
    public = sum(module["public"] for module in modules)
    return sum(module["documented"] for module in modules) / public if public else 0.0


def treemap(modules: list[Module]) -> str:
    """Draw all modules by lines of code."""
    groups: dict[str, list[charts.Leaf]] = defaultdict(list)
    for module in modules:
        code, share = module["lines"]["code"], documented_share([module])
        note = f"{module['module']}: {code:,} lines of code, {share:.0%} of {module['public']} public names documented"
        short = str(module["module"]).partition(".")[2] or str(module["module"])
        groups[package(module)].append(charts.Leaf(short, max(code, 1), share, note))
    return charts.treemap(groups)


def import_counts(modules: list[Module]) -> tuple[Counter[str], set[tuple[str, str]]]:
    """Return how many modules import each package of the library, and which package imports which."""
    own = {package(module) for module in modules} | set(getattr(sys, "builtin_module_names", ()))
    counts: Counter[str] = Counter()
    edges = set()
    for module in modules:
        for name in set(module["imports"]) & own - {package(module)}:
            counts[name] += 1
            edges.add((package(module), name))
    return counts, edges


def wheel(counts: Counter[str], edges: set[tuple[str, str]]) -> str:
    """Draw the imports among the most imported packages, neighbours in the alphabet side by side."""
    names = sorted(name for name, _ in counts.most_common(WHEEL))
    inside = sorted(edge for edge in edges if edge[0] in names and edge[1] in names)
    return charts.import_wheel(names, dict(counts), inside)


def length_bins(functions: list[Module]) -> list[tuple[str, int]]:
    """Count functions by their length."""
    named = [(f"{low}-{high}" if high < 10**9 else f">{low - 1}", low, high) for low, high in BINS]
    return [(name, sum(low <= function["lines"] <= high for function in functions)) for name, low, high in named]


def best_documented(modules: list[Module]) -> list[tuple[str, float, str]]:
    """Return the packages whose public names are documented best."""
    groups: dict[str, list[Module]] = defaultdict(list)
    for module in modules:
        groups[package(module)].append(module)
    large = {name: group for name, group in groups.items() if sum(module["public"] for module in group) >= 40}
    ranked = sorted(large, key=lambda name: -documented_share(large[name]))[:12]
    return [(name, documented_share(large[name]), f"{documented_share(large[name]):.0%}") for name in ranked]


def facts(modules: list[Module], functions: list[Module]) -> str:
    """Return the row of large numbers."""
    shown = (
        (f"{len(modules):,}", "modules"),
        (f"{sum(module['lines']['code'] for module in modules):,}", "lines of code"),
        (f"{sum(module['lines']['comment'] for module in modules):,}", "lines of comment"),
        (f"{len(functions):,}", "functions"),
        (f"{sum(module['classes'] for module in modules):,}", "classes"),
        (f"{documented_share(modules):.0%}", "of public names documented"),
    )
    return "".join(f'<div class="fact"><b>{number}</b><span>{name}</span></div>' for number, name in shown)


def page(index: Module, results: list[Module], failures: list[Module]) -> str:
    """Return the whole report."""
    modules = [module for result in results for module in result["modules"]]
    functions = [
        {**function, "name": f"{module['module']}.{function['name']}"}
        for module in modules
        for function in module["functions"]
    ]
    counts, edges = import_counts(modules)
    begin = index["prepared"]
    spans = [
        charts.Span(
            result["task"],
            result["started"] - begin,
            result["ended"] - begin,
            f"{result['task']}: {len(result['modules'])} modules in {result['ended'] - result['started']:.2f} s",
        )
        for result in results
    ]
    crosses = [(fault["time"] - begin, f"shard {fault['shard']} failed here and was retried") for fault in failures]
    complexities = sorted(functions, key=lambda function: -function["paths"])[:12]
    took = max((span.end for span in spans), default=0.0)
    template = string.Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        intro=f"Python {charts.escape(index['python'])}, as it is installed on this machine, read by {len(results)} "
        "tasks of one Azure Batch job.",
        facts=facts(modules, functions),
        treemap=treemap(modules),
        wheel=wheel(counts, edges),
        wheel_size=min(WHEEL, len(counts)),
        imported=charts.bars(
            [(name, count, f"{count:,}") for name, count in counts.most_common(12)], label="Most imported modules"
        ),
        complex=charts.bars(
            [(item["name"], item["paths"], f"{item['paths']:,}") for item in complexities], label="Most branches"
        ),
        lengths=charts.columns(length_bins(functions), label="Functions by length"),
        median=f"{statistics.median([function['lines'] for function in functions] or [0]):.0f}",
        documented=charts.bars(best_documented(modules), label="Best documented packages"),
        made=f"A preparation task copied the sources once; {len(results)} tasks analysed one shard each, "
        f"{took:.1f} seconds after the preparation the last one was done"
        + (f"; {len(failures)} failed once, on purpose, and was retried (the cross)." if failures else "."),
        timeline=charts.timeline(spans, crosses),
        footer="Made by nodeagent's example stdlib-report: preparation, tasks and release are plain Python scripts.",
    )


def main() -> None:
    """Gather and write; nothing to gather is an error that says so."""
    job = Path(os.environ["AZ_BATCH_NODE_SHARED_DIR"]) / os.environ["AZ_BATCH_JOB_ID"]
    results = [json.loads(file.read_text()) for file in sorted((job / "results").glob("*.json"))]
    if not results:
        sys.exit(f"no results below {job / 'results'}: no task of the job succeeded on this node")
    failures = [json.loads(file.read_text()) for file in sorted(job.glob("failed-once-*.json"))]
    report = job / "report.html"
    report.write_text(page(json.loads((job / "index.json").read_text()), results, failures), encoding="utf-8")
    print(f"report of {len(results)} shards: {report.as_uri()}")


if __name__ == "__main__":
    main()
