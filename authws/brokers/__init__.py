"""Carrying messages from whoever publishes to whoever subscribed."""
