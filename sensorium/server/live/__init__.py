"""Live sessions over sockets: one service, and doors that translate it."""
