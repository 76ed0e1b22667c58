"""Core ML packages: read from the file format and run by numpy, on any platform."""
