"""Core ML: packages of the canonical one-frame graph, and what a program around one has to do."""
