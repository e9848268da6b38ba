"""Registration: classical objectives, ICP from a start, global search, and the evidence for a result."""
