"""The verbs of jobs, tasks, pools, nodes and attempts, each inside one transaction (spec/rest.md §8)."""
