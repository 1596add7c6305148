"""Stored records looked at again with their model: closer, or to see whether they still hold."""
