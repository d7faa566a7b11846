"""``headrace demo``: a real embedded Postgres, a small shop that commits, and headrace attached to it as by ``run``."""
