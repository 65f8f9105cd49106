"""The memory that a training run needs on each GPU, estimated on a CPU."""
