#!/usr/bin/env bash
# Fetches llama.cpp's vocabularies, their test vectors, its collection of chat templates and its example grammars, from the source
# package of llama-cpp-python, into a folder:   fetch.sh DIR
# 77 MB come over the network. Done before: does nothing.
set -euo pipefail
readonly PACKAGE=llama-cpp-python VERSION=0.3.36
dir=$1
[[ -f "$dir/$VERSION" && -d "$dir/grammars" ]] && exit
mkdir -p "$dir"
work=$(mktemp -d -p "$dir")
trap 'rm -rf "$work"' EXIT
python3 -m pip download -q --no-deps --no-binary "$PACKAGE" -d "$work" "$PACKAGE==$VERSION"
tar -xzf "$work/llama_cpp_python-$VERSION.tar.gz" -C "$work" --wildcards "*/vendor/llama.cpp/models/*" "*/vendor/llama.cpp/grammars/*"
source=$work/llama_cpp_python-$VERSION/vendor/llama.cpp
cp -r "$source/models/." "$dir/"
cp -r "$source/grammars" "$dir/"
touch "$dir/$VERSION"
