"""Registration networks, each written from its paper, in one frame."""
