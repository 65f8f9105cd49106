"""Networks of mmitpn. Each folder is imported by itself, so that a backbone does not wait for a detector's host."""
