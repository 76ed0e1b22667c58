"""How long a hop takes, measured so that the figures of one run can be compared with each other."""
