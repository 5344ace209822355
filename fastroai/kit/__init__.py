"""What stands around pipelines: a project, a stack on this machine, and a check of both."""
