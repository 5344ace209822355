"""Jobs ready to run: each module has one `pipeline`."""
