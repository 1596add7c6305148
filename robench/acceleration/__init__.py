"""Forms of a model that search faster, which one pays, and how many inputs it takes at a time."""
