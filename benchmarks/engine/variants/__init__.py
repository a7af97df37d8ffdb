"""Each runs in a process of its own, in an environment of its own: the ways to generate a sweep's replies, and the machine itself."""
