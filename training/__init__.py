"""The training that makes the weights: uses the dataset's functions and the pipeline's models."""
