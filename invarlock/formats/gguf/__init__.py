"""GGUF files: their names, their metadata, and llama.cpp, which runs them."""
