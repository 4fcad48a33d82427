"""The language of autoscale formulas: text to tree, tree and samples to the size of a pool. Pure: no I/O, no clock."""
