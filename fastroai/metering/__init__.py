"""Counts and prices each model request where it is sent."""
