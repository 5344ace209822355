"""Replay of answered requests and finished tool calls."""
