#!/usr/bin/env python3
"""Write a GGUF file whose tensors are those of another, dequantised to F32.

llama.cpp rounds the activations to 8 bits before it multiplies them with quantised weights, which moves the logits of the
bundled model by about 0.1. On the same weights in F32 it does not, so its logits can be compared closely.
"""
import argparse
from pathlib import Path

import gguf
import numpy as np


def copy_metadata(reader, writer):
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = gguf.LlamaFileType.ALL_F32 if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, field.types[0], sub_type=field.types[-1] if len(field.types) > 1 else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    args = parser.parse_args()

    reader = gguf.GGUFReader(args.source)
    writer = gguf.GGUFWriter(args.destination, reader.fields["general.architecture"].contents())
    copy_metadata(reader, writer)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values.reshape([*map(int, reversed(tensor.shape))])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
