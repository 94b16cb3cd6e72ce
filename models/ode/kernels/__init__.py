"""Compiled paths of a flow, on a CPU and on a GPU."""
