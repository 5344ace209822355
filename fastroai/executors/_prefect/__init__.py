"""Private parts of the Prefect adapter."""
