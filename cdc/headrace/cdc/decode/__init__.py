"""Sans-I/O decoders: bytes in, values out. No socket, no clock, no SQL, no logging in this folder."""
