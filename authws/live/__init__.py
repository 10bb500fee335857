"""Live connections: who is here, in which rooms, and until when."""
