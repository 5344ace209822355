"""The parts of the Prefect adapter; the only home of `import prefect` beside `executors/prefect.py`."""
