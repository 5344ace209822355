"""The parts of the Prefect adapter, its own business."""
