"""What can be measured, by name. No torch: the command line lists it."""

# hidden size, layers, heads, intermediate size, whether the head is the embedding table
SHAPES = {
    "qwen3-0.6b": (1024, 28, 16, 3072, True),
    "qwen3-1.7b": (2048, 28, 16, 6144, True),
    "qwen3-8b": (4096, 36, 32, 12288, False),
}
# Engines that the same work can be run through.
OTHERS = ("transformers", "vllm")
