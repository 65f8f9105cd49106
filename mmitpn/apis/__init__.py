"""What users call: predictions, data of their own, and the report of a run."""
