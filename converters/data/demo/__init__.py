"""A small trained vision-language model that ships with the package, and the pictures it was trained on."""
