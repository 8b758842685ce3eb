"""Where trials run: Ray, from the connection to the processes that train."""
