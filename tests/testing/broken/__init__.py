"""Components that break one promise each, made from ones that keep them all."""
