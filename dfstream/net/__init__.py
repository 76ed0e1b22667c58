"""The network compiled: from the compact graph to kernels for a frame, a block or many streams."""
