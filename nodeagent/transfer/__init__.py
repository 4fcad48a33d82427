"""What moves bytes between a node and the world: resource files and packages in, output files out. No agent in here."""
