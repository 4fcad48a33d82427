"""`$filter` of list requests: text to tree, and tree to a parameterised SQL condition (spec/rest.md §4.1)."""
