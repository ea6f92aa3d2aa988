"""How each kind of node treats masked inputs."""
