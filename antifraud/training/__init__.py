"""Records in, a sealed checkpoint out."""
