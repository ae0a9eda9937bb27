"""Times PyTorch's flash attention on the shapes of attention_test's prompts: queries and outputs in float16, keys and values not paged."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

REPEATS = 15
LAYERS = 8


def microseconds(head_dim: int, heads: int, kv_heads: int, rows: int, context: int) -> float:
    """Median over replays of a graph of LAYERS calls, over LAYERS."""
    query = torch.randn(1, heads, rows, head_dim, device="cuda", dtype=torch.float16)
    keys, values = (torch.randn(LAYERS, 1, kv_heads, context, head_dim, device="cuda", dtype=torch.float16) for _ in range(2))
    mask = causal_lower_right(rows, context)

    def run() -> None:
        for layer in range(LAYERS):
            scaled_dot_product_attention(query, keys[layer], values[layer], attn_mask=mask, enable_gqa=heads != kv_heads)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / LAYERS)
    return sorted(times)[REPEATS // 2]


print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
print(f"{'prompt':34} {'rows':>5} {'context':>8} {'us':>10} {'TFLOP/s':>9}")
for head_dim, heads, kv_heads in [(128, 32, 8), (64, 32, 8)]:
    for rows, context in [(512, 512), (512, 1024), (512, 2048), (512, 4096), (512, 8192), (2048, 8192), (128, 8192), (32, 8192)]:
        try:
            us = microseconds(head_dim, heads, kv_heads, rows, context)
        except Exception as error:  # a shape that this version has no flash kernel for
            print(f"{heads}/{kv_heads} heads of {head_dim}: {error}")
            continue
        operations = 4 * rows * (context - (rows - 1) / 2) * heads * head_dim
        print(f"{f'{heads}/{kv_heads} heads of {head_dim}':34} {rows:5} {context:8} {us:10.2f} {operations / us * 1e-6:9.1f}")
