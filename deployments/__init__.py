"""What a deployment needs besides the pipelines."""
