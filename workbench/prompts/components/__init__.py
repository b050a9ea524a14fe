"""Which parts of a prompt can be said otherwise without a proposer, and how."""
