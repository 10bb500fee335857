"""Servers of the tests' own: private, on free ports, ended by pid and nothing else."""
