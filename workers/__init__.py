"""What does the work: the GPU replica with its engine, and the RQ worker for side work."""
