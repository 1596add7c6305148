"""An attack, a metric, a check, a data set, a network and reports from outside robench."""
