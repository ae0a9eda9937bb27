// Products with matrices: right within bounds, the same bits in every batch, and how long they take.
//
//     linear_test [correct] [bits] [small] [tiny [TYPE…]] [wide [TYPE…]] [times [TYPE] [PRODUCT] [ROWS…]]
//
// small is for tools that slow a program down; tiny and wide are for those that do so a thousandfold, a type at a time.
//
// Built with linear.cu. The reference multiplies the weights that a file's blocks mean in float64, on the host.
#include <cstring>
#include <string>
#include <utility>

#include "blocks.cuh"
#include "device.cuh"

namespace {

using test::Buffer;
using test::graph_time;
using test::Matrix;
using test::Type;

int failures = 0;

template <class... Values>
void expect(bool ok, const char *format, Values... values) {
  if (ok) return;
  failures += 1;
  std::printf("FAILED: ");
  std::printf(format, values...);
  std::printf("\n");
}

// A matrix on the device.
struct Held {
  Type type;
  uint32_t outputs, inputs;
  Buffer<uint8_t> bytes;

  explicit Held(const Matrix &matrix) : Held(matrix.type, matrix.outputs, matrix.inputs) { pack(Buffer<uint8_t>(matrix.bytes).get()); }
  Held(const Type &type, uint32_t outputs, uint32_t inputs)
      : type(type), outputs(outputs), inputs(inputs), bytes(nucleus_matrix_bytes(type.number, outputs, inputs)) {}
  void pack(const void *file) {
    bytes.poison();
    CHECK(nucleus_pack_matrix(type.number, outputs, inputs, file, bytes.get(), nullptr));
    CHECK(cudaDeviceSynchronize());
  }
  NucleusMatrix matrix() const { return {bytes.get(), type.number, outputs, inputs}; }
};

// Activations of the size of a model's, with a few large ones, as models have.
std::vector<float> activations(uint32_t rows, uint32_t inputs, uint32_t seed) {
  std::vector<float> x(size_t{rows} * inputs);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = test::uniform(i, seed) * std::exp2(3 * test::uniform(i, seed + 1));
    if (test::hash(i, seed + 2) % 500 == 0) x[i] *= 300;
  }
  return x;
}

struct Output {
  const Held *held;
  const float *bias = nullptr;
  uint64_t padding = 0;
};

// Runs products over fresh, poisoned memory; gives all outputs, rows side by side, and checks that nothing else was written.
std::vector<std::vector<float>> run(const std::vector<float> &x, uint32_t rows, const std::vector<Output> &outputs) {
  uint32_t inputs = outputs[0].held->inputs;
  Buffer<float> input(x);
  Buffer<uint8_t> workspace(nucleus_linear_workspace(rows, inputs));
  workspace.poison();
  std::vector<Buffer<float>> memory;
  std::vector<NucleusProduct> products;
  for (const Output &o : outputs) {
    uint64_t stride = o.held->outputs + o.padding;
    memory.emplace_back(rows * stride);
    memory.back().poison();
    products.push_back({o.held->matrix(), o.bias, memory.back().get(), stride});
  }
  CHECK(nucleus_linear(input.get(), rows, products.data(), static_cast<uint32_t>(products.size()), workspace.get(), workspace.size(), nullptr));
  std::vector<std::vector<float>> results;
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::vector<float> all = memory[i].host(), values;
    uint64_t width = outputs[i].held->outputs, stride = products[i].output_stride;
    for (uint32_t row = 0; row < rows; ++row) {
      values.insert(values.end(), all.begin() + row * stride, all.begin() + row * stride + width);
      for (uint64_t j = width; j < stride; ++j) {
        uint32_t bits;
        std::memcpy(&bits, &all[row * stride + j], 4);
        expect(bits == 0xffffffff, "memory between rows was written");
      }
    }
    results.push_back(std::move(values));
  }
  return results;
}

std::vector<float> run_one(const std::vector<float> &x, uint32_t rows, const Held &held) { return run(x, rows, {{&held}})[0]; }

// The largest error of a result, as a share of the sum of its products' magnitudes and of the norms' product.
struct Errors {
  double of_magnitudes = 0, of_norms = 0;
};

Errors errors(const Matrix &matrix, const std::vector<float> &x, uint32_t rows, const std::vector<float> &bias, const std::vector<float> &results) {
  Errors worst;
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t o = 0; o < matrix.outputs; ++o) {
      double sum = bias.empty() ? 0 : bias[o], magnitudes = std::fabs(sum), x2 = 0, w2 = 0;
      for (uint32_t i = 0; i < matrix.inputs; ++i) {
        double w = matrix.weights[size_t{o} * matrix.inputs + i], v = x[size_t{row} * matrix.inputs + i];
        sum += w * v, magnitudes += std::fabs(w * v), x2 += v * v, w2 += w * w;
      }
      double error = std::fabs(results[size_t{row} * matrix.outputs + o] - sum);
      if (!(error <= 1e30)) error = 1e30;
      worst.of_magnitudes = std::max(worst.of_magnitudes, error / (magnitudes + 1e-30));
      worst.of_norms = std::max(worst.of_norms, error / (std::sqrt(x2 * w2) + 1e-30));
    }
  }
  return worst;
}

std::vector<std::pair<uint32_t, uint32_t>> shapes_of(const Type &type) {
  if (type.block == 1) return {{1, 1}, {5, 37}, {77, 515}, {16, 300}, {200, 2304}, {40, 4100}};
  if (type.block == 32) return {{1, 32}, {77, 288}, {130, 896}, {200, 2304}, {40, 4096}};
  return {{1, 256}, {77, 768}, {200, 2304}, {40, 4096}};
}

// Of the magnitudes: two parts of bfloat16 keep 16 bits; of float16 21.
double bound_of(const Type &type) { return type.number == NUCLEUS_F32 || type.number == NUCLEUS_BF16 ? std::exp2(-16) : std::exp2(-19); }

// Rows of the matrix, the last among them.
void check_embedding(const Matrix &matrix, const Held &held) {
  constexpr float SCALE = 0.75f;
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < 9; ++i) tokens.push_back(i ? test::hash(i, 5) % matrix.outputs : matrix.outputs - 1);
  Buffer<uint32_t> device_tokens(tokens);
  Buffer<float> rows(tokens.size() * matrix.inputs);
  rows.poison();
  CHECK(nucleus_embed(held.matrix(), device_tokens.get(), static_cast<uint32_t>(tokens.size()), SCALE, rows.get(), nullptr));
  const std::vector<float> embedded = rows.host();
  for (size_t i = 0; i < embedded.size(); ++i) {
    const float expected = matrix.weights[size_t{tokens[i / matrix.inputs]} * matrix.inputs + i % matrix.inputs] * SCALE;
    expect(embedded[i] == expected, "%s embedding %zu: %g, not %g", matrix.type.name, i, embedded[i], expected);
    if (embedded[i] != expected) break;
  }
}

void correct(bool small) {
  for (const Type &type : test::TYPES) {
    const double bound = bound_of(type);
    Errors worst;
    for (auto [outputs, inputs] : shapes_of(type)) {
      if (small && inputs > 1000) continue;
      Matrix matrix(type, outputs, inputs, outputs * 7 + inputs);
      Held held(matrix);
      std::vector<float> bias(outputs);
      for (uint32_t i = 0; i < outputs; ++i) bias[i] = test::uniform(i, 99);
      Buffer<float> device_bias(bias);
      for (uint32_t rows : {1u, 3u, 5u, 8u, 16u, 17u, 40u, 70u}) {
        if (small && rows > 40) continue;
        std::vector<float> x = activations(rows, inputs, rows);
        bool biased = rows % 2;
        std::vector<float> results = run(x, rows, {{&held, biased ? device_bias.get() : nullptr, rows % 3}})[0];
        Errors e = errors(matrix, x, rows, biased ? bias : std::vector<float>{}, results);
        worst = {std::max(worst.of_magnitudes, e.of_magnitudes), std::max(worst.of_norms, e.of_norms)};
        expect(e.of_magnitudes <= bound, "%s %u x %u, %u rows: error %g of the magnitudes", type.name, outputs, inputs, rows, e.of_magnitudes);
      }
      check_embedding(matrix, held);
    }
    std::printf("%-5s worst error: %.2e of the magnitudes, %.2e of the norms (bound %.2e)\n", type.name, worst.of_magnitudes, worst.of_norms, bound);
  }
}

// Products of one shape with each number of rows that has a kernel of its own, and embeddings.
void each_kernel(const std::vector<std::string> &types, uint32_t outputs, uint32_t inputs) {
  for (const Type &type : test::TYPES) {
    if (!types.empty() && std::find(types.begin(), types.end(), type.name) == types.end()) continue;
    Matrix matrix(type, outputs, inputs, 4);
    Held held(matrix);
    Errors worst;
    for (uint32_t rows : {3u, 12u, 24u, 40u}) {
      std::vector<float> x = activations(rows, matrix.inputs, rows);
      worst.of_magnitudes = std::max(worst.of_magnitudes, errors(matrix, x, rows, {}, run_one(x, rows, held)).of_magnitudes);
    }
    expect(worst.of_magnitudes <= bound_of(type), "%s: error %g of the magnitudes", type.name, worst.of_magnitudes);
    check_embedding(matrix, held);
  }
}
// Several sections, in clusters.
void tiny(const std::vector<std::string> &types) { each_kernel(types, 40, 1024); }
// So many outputs that blocks take many of them, of one section.
void wide(const std::vector<std::string> &types) { each_kernel(types, 132 * 128 + 40, 256); }

// A row with what is not finite says so, and leaves its neighbours alone.
void not_finite() {
  for (const Type &type : test::TYPES) {
    Held held(Matrix(type, 48, 512, 3));
    std::vector<float> x = activations(7, 512, 8), plain = run_one(x, 7, held);
    for (float defect : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> changed = x;
      changed[3 * 512 + 100] = defect;
      std::vector<float> results = run_one(changed, 7, held);
      for (uint32_t i = 0; i < results.size(); ++i) {
        bool hit = i / 48 == 3;
        if (hit) expect(!std::isfinite(results[i]), "%s: %g came of %g", type.name, results[i], defect);
        else expect(!std::memcmp(&results[i], &plain[i], 4), "%s: another row changed", type.name);
      }
    }
    // far from 1, and nothing but zeros
    for (float factor : {1e30f, 1e-30f, 0.0f}) {
      std::vector<float> scaled = x;
      for (float &value : scaled) value *= factor;
      std::vector<float> results = run_one(scaled, 7, held);
      for (uint32_t i = 0; i < results.size(); ++i)
        expect(std::fabs(results[i] - plain[i] * factor) <= 3e-5 * 20 * factor, "%s: rows times %g", type.name, factor);
    }
  }
}

void refusals() {
  Held held(Matrix(test::TYPES[3], 48, 512, 3));
  NucleusProduct product{held.matrix(), nullptr, nullptr, 48};
  NucleusProduct unknown = product, uneven = product;
  unknown.matrix.type = 3;
  uneven.matrix.inputs = 500;
  Buffer<uint8_t> workspace(nucleus_linear_workspace(1, 512));
  auto status = [&](const NucleusProduct &p, uint32_t rows, uint32_t count, size_t bytes) {
    return nucleus_linear(nullptr, rows, &p, count, workspace.get(), bytes, nullptr);
  };
  expect(status(product, 0, 1, workspace.size()) == 0, "no rows are no error");
  expect(status(product, 1, 0, workspace.size()) != 0, "no products");
  expect(status(product, 1, 5, workspace.size()) != 0, "five products");
  expect(status(unknown, 1, 1, workspace.size()) != 0, "an unknown type");
  expect(status(uneven, 1, 1, workspace.size()) != 0, "half a block");
  expect(status(product, 64, 1, nucleus_linear_workspace(64, 512) - 1) != 0, "too little workspace");
  expect(nucleus_matrix_bytes(3, 16, 256) == 0, "bytes of an unknown type");
  expect(nucleus_pack_matrix(NUCLEUS_Q8_0, 16, 31, nullptr, nullptr, nullptr) != 0, "packing half a block");
}

void bits(bool small) {
  for (const Type &type : test::TYPES) {
    uint32_t different = 0, compared = 0, checksum = 0;  // the checksum is that of other builds on the same device
    for (auto [outputs, inputs] : std::vector<std::pair<uint32_t, uint32_t>>{{200, 2304}, {35, 14336}, {300, 4096}, {70, 768}}) {
      if (small && inputs > 3000) continue;
      const uint32_t most = small ? 100 : 512;
      Held held(Matrix(type, outputs, inputs, 11));
      std::vector<float> x = activations(most, inputs, 12), all = run_one(x, most, held);
      for (float value : all) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        checksum = checksum * 31 + bits;
      }
      for (uint32_t rows : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 12u, 16u, 17u, 32u, 33u, 63u, 64u, 65u, 100u, 128u, 200u, 256u, 500u, 512u}) {
        if (rows > most) continue;
        // rows from all over, in another order
        std::vector<uint32_t> chosen(rows);
        std::vector<float> some(size_t{rows} * inputs);
        for (uint32_t i = 0; i < rows; ++i) {
          chosen[i] = static_cast<uint32_t>((uint64_t{i} * 97 + rows * 31) % most);
          std::copy_n(&x[size_t{chosen[i]} * inputs], inputs, &some[size_t{i} * inputs]);
        }
        std::vector<float> results = run_one(some, rows, held);
        for (uint32_t i = 0; i < rows; ++i) {
          compared += outputs;
          for (uint32_t o = 0; o < outputs; ++o) different += 0 != std::memcmp(&results[size_t{i} * outputs + o], &all[size_t{chosen[i]} * outputs + o], 4);
        }
      }
    }
    std::printf("%-5s %u of %u results differ in bits between batches; checksum %08x\n", type.name, different, compared, checksum);
    expect(!different, "%s", type.name);
  }
}

// Several products at once are those products.
void together() {
  const uint32_t inputs = 1024;
  std::vector<Held> held;
  for (auto [type, outputs] : std::vector<std::pair<uint32_t, uint32_t>>{{5, 96}, {5, 33}, {6, 1}, {3, 200}, {0, 17}, {2, 40}, {1, 64}, {3, 16}, {3, 7}, {3, 500}})
    held.emplace_back(Matrix(test::TYPES[type], outputs, inputs, outputs));
  for (uint32_t rows : {1u, 6u, 16u, 40u}) {
    std::vector<float> x = activations(rows, inputs, rows);
    for (auto chosen : std::vector<std::vector<uint32_t>>{{0, 1, 2}, {0, 2, 1, 3}, {3, 4, 5, 6}, {7, 8, 9, 3}, {9, 8}}) {
      std::vector<Output> outputs;
      for (uint32_t i : chosen) outputs.push_back({&held[i], nullptr, i});
      auto results = run(x, rows, outputs);
      for (size_t i = 0; i < chosen.size(); ++i) {
        std::vector<float> alone = run_one(x, rows, held[chosen[i]]);
        expect(!std::memcmp(alone.data(), results[i].data(), alone.size() * 4), "product %u of several, %u rows", chosen[i], rows);
      }
    }
  }
}

// More than 2^31 weights.
void large() {
  const uint32_t outputs = 151936, inputs = 14464;
  const Type &type = test::TYPES[4];
  const size_t row_bytes = inputs / type.block * type.bytes;
  Matrix tail(type, 64, inputs, 21);
  Buffer<uint8_t> file(outputs * row_bytes);
  CHECK(cudaMemset(file.get(), 0, file.size()));
  CHECK(cudaMemcpy(file.get() + (outputs - 64) * row_bytes, tail.bytes.data(), tail.bytes.size(), cudaMemcpyHostToDevice));
  Held held(type, outputs, inputs);
  held.pack(file.get());
  for (uint32_t rows : {1u, 20u}) {
    std::vector<float> x = activations(rows, inputs, 22), all = run_one(x, rows, held), expected = run_one(x, rows, Held(tail));
    for (uint32_t row = 0; row < rows; ++row) {
      expect(!std::memcmp(&all[size_t{row} * outputs + outputs - 64], &expected[row * 64], 64 * 4), "the last outputs of a large matrix, %u rows", rows);
      expect(all[size_t{row} * outputs] == 0, "the first output of a large matrix");
    }
  }
}

__global__ void fill(uint32_t type, uint64_t blocks, uint32_t bytes, uint32_t seed, uint8_t *file) {
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < blocks; i += uint64_t{gridDim.x} * blockDim.x)
    test::fill_block(type, i, seed, file + i * bytes);
}

// Reads memory as fast as can be.
__global__ void __launch_bounds__(512) read_all(const uint4 *from, uint64_t count, uint32_t *sink) {
  uint32_t mixed = 0;
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += 8 * stride) {
    uint4 values[8];
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j) values[j] = i + j * stride < count ? __ldcs(from + i + j * stride) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j) mixed ^= values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
  }
  if (mixed == 0x12345678) *sink = mixed;
}

struct Case {
  const char *name;
  uint32_t inputs;
  std::vector<uint32_t> outputs;
};

const Case CASES[] = {
    {"1B qkv", 2048, {2048, 512, 512}},   {"1B o", 2048, {2048}},         {"1B gate, up", 2048, {8192, 8192}},    {"1B down", 8192, {2048}},
    {"3.8B qkv", 3072, {3072, 3072, 3072}}, {"3.8B o", 3072, {3072}},       {"3.8B gate, up", 3072, {8192, 8192}},  {"3.8B down", 8192, {3072}},
    {"8B qkv", 4096, {4096, 1024, 1024}}, {"8B o", 4096, {4096}},         {"8B gate, up", 4096, {14336, 14336}}, {"8B down", 14336, {4096}},
    {"8B logits", 4096, {128256}},        {"4B logits", 2560, {151936}},
};

// Microseconds of each product, or the one of a type or a name, over matrices that no cache holds.
void times(const std::vector<std::string> &only, const std::vector<uint32_t> &rows_list) {
  const auto chosen = [&](const char *kind, const char *name) {
    bool any = false, this_one = false;
    for (const std::string &word : only) {
      if ((word.find(' ') != std::string::npos) != (*kind == 'p')) continue;
      any = true, this_one |= word == name;
    }
    return !any || this_one;
  };
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  const size_t room = size_t{1} << 30;
  double speed = 0;
  {
    Buffer<uint8_t> from(room);
    Buffer<uint32_t> sink(1);
    from.poison();
    speed = room / graph_time(stream, 4, 5, [&](uint32_t) { read_all<<<132 * 4, 512, 0, stream>>>(reinterpret_cast<uint4 *>(from.get()), room / 16, sink.get()); }) * 1e-6;
  }
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s; a kernel that only reads: %.2f TB/s\n%-5s %-14s %8s", device.name, speed, "type", "product", "MB");
  for (uint32_t rows : rows_list) std::printf(" | %4u rows: us   share", rows);
  std::printf("\n");
  for (const Type &type : test::TYPES) {
    if (!chosen("type", type.name)) continue;
    for (const Case &c : CASES) {
      if (!chosen("product", c.name)) continue;
      size_t bytes = 0;
      uint64_t outputs = 0;
      for (uint32_t o : c.outputs) bytes += nucleus_matrix_bytes(type.number, o, c.inputs), outputs += o;
      if (bytes > size_t{3} << 30) continue;
      const uint32_t copies = static_cast<uint32_t>(std::max<size_t>(2, (size_t{400} << 20) / bytes));
      std::vector<Held> held;
      for (uint32_t i = 0; i < copies; ++i) {
        for (uint32_t o : c.outputs) {
          held.emplace_back(type, o, c.inputs);
          uint64_t blocks = uint64_t{o} * c.inputs / type.block;
          Buffer<uint8_t> file(blocks * type.bytes);
          fill<<<1024, 256>>>(type.number, blocks, type.bytes, i, file.get());
          held.back().pack(file.get());
        }
      }
      std::printf("%-5s %-14s %8.1f", type.name, c.name, bytes * 1e-6);
      for (uint32_t rows : rows_list) {
        Buffer<float> x(activations(rows, c.inputs, rows)), output(rows * outputs);
        Buffer<uint8_t> workspace(nucleus_linear_workspace(rows, c.inputs));
        uint32_t count = rows > 64 ? copies : std::max(copies, 20u);
        double us = graph_time(stream, count, 7, [&](uint32_t call) {
          std::vector<NucleusProduct> products;
          float *to = output.get();
          for (size_t i = 0; i < c.outputs.size(); ++i) {
            products.push_back({held[call % copies * c.outputs.size() + i].matrix(), nullptr, to, c.outputs[i]});
            to += size_t{rows} * c.outputs[i];
          }
          CHECK(nucleus_linear(x.get(), rows, products.data(), static_cast<uint32_t>(products.size()), workspace.get(), workspace.size(), stream));
        });
        if (rows <= 32) std::printf(" | %13.2f %6.1f%%", us, bytes / us * 1e-4 / speed);
        else std::printf(" | %13.2f %5.0fTF", us, 2.0 * outputs * c.inputs * rows / us * 1e-6);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
  CHECK(cudaStreamDestroy(stream));
}

}  // namespace

int main(int count, char **arguments) {
  for (int i = 1; i < count; ++i) {
    std::string what = arguments[i];
    if (what == "correct") correct(false), not_finite(), refusals(), together();
    if (what == "small") correct(true), not_finite(), together(), bits(true);
    if (what == "tiny" || what == "wide") {
      std::vector<std::string> types;
      while (i + 1 < count && std::any_of(std::begin(test::TYPES), std::end(test::TYPES), [&](const Type &type) { return !std::strcmp(type.name, arguments[i + 1]); })) types.push_back(arguments[++i]);
      if (what == "tiny") tiny(types);
      else wide(types);
    }
    if (what == "bits") bits(false), large();
    if (what == "times") {
      std::vector<std::string> only;
      std::vector<uint32_t> rows;
      while (++i < count) {
        if (std::string word = arguments[i]; word.find_first_not_of("0123456789") == std::string::npos) rows.push_back(static_cast<uint32_t>(std::atoi(word.c_str())));
        else only.push_back(word);
      }
      times(only, rows);
    }
  }
  CHECK(cudaDeviceSynchronize());
  std::printf(failures ? "%d FAILURES\n" : "all is well\n", failures);
  return failures != 0;
}
