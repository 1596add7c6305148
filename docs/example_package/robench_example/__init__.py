"""An attack, a metric, a check, a data set and reports from outside robench, a file each."""
