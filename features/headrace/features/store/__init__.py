"""Online stores in Feast's own format. base.py is the contract; one file per engine."""
