"""Ways to drive the graphs, one a file."""
