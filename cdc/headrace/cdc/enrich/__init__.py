"""What steps of the pipeline know beside the event itself: agents, places of addresses, rows of captured tables, answers of other services."""
