"""Learning without clean data, measured: the same scans, network and time for every method."""
