"""Functions the algorithm and the callbacks share; nothing here knows either."""
