"""What several test modules share: oracles, files to read, text, and processes to start. No tests."""
