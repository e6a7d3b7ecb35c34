"""The parts of the local stack. Only the standard library is used, so that it runs before anything is installed."""
