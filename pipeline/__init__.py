"""The model and the pipeline. Knows nothing of training or of datasets."""
