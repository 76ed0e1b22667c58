"""Graph surgery on DeepFilterNet exports, one patch a file."""
