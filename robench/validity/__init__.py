"""Can a robustness number be trusted: what bounds it from the other side."""
