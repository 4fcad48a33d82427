"""Why tasks, jobs and nodes are in their states, from the same rows and plan that the scheduler uses."""
