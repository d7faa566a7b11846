"""Pure functions on events, in the order of a record's way: normalise, then (later) validate, transform, privacy, identity."""
