"""Where things run: the command line and the launchers."""
