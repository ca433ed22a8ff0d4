"""Python API: the functions and classes that `import edgeship` offers."""
