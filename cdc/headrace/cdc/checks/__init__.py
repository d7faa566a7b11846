"""Checks of values by others (a mail domain's DNS, a verifier's API), behind the log: what comes out is an event of the same customer."""
