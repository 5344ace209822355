"""Parts of a deployment besides the pipelines."""
