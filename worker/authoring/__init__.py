"""Tools for the people who write policies: calibrate, explain, compare."""
