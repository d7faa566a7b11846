"""The durable, ordered log between capture and every consumer. base.py is the contract; one file per engine."""
