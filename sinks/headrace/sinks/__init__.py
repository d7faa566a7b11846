"""Delivery: everything that reads the log and hands events to somebody else."""
