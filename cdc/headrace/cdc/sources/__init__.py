"""The I/O around the decoders. base.py is the contract; one file per kind of source."""
