"""gRPC servicers: thin shells that turn messages into calls on the stores."""
