"""Several processes: one keeps sources, log and server, the others keep consumers, and the log is where they meet."""
