"""An attack, a metric, a check and a report from outside robench, a file each."""
