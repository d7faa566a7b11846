"""The commands of the ``headrace`` program, one file each, found by the entry points ``headrace.commands``."""
